"""What README says is consistent, and links of documents lead somewhere; tests/documents_test.py runs their code."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from direct_hifimamba.training.compose import validate

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("projects/**/*.md")})


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)


def test_the_configuration_is_complete_and_known_to_direct() -> None:
    (text,) = blocks("docs/configuration.md", "yaml")
    config = OmegaConf.create(text)
    assert {"model", "physics", "training", "validation", "inference"} <= config.keys()
    validate(config)
    (section,) = blocks("README.md", "yaml")
    assert OmegaConf.create(section).model == config.model


def test_the_paper_is_cited_with_its_title_and_all_authors() -> None:
    paper = OmegaConf.load(ROOT / "CITATION.cff").references[0]
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert paper.title in readme
    assert ", ".join(f"{name['given-names'][0]}. {name['family-names']}" for name in paper.authors) in readme


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_files_that_contributing_names_exist() -> None:
    names = re.findall(
        r"`((?:direct_hifimamba|tests|projects|performance)/[^`<>*]+)`", (ROOT / "CONTRIBUTING.md").read_text()
    )
    assert len(names) > 10
    assert [name for name in names if not (ROOT / name.rstrip("/")).exists()] == []

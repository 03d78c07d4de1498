"""Configurations and commands in README, docs and projects are executed: small, for six iterations, on look-alikes.

A block that cannot be carries the reason: `<!-- Not run by tests/documents_test.py: reason. -->` in the line above it.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import yaml
from direct.cli import cli as direct_cli
from omegaconf import OmegaConf

from direct_hifimamba import cli
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.data.prepare import prepare
from direct_hifimamba.data.protocol import Settings
from direct_hifimamba.reconstruction.reconstructor import Reconstructor
from direct_hifimamba.training.compose import compose, to_yaml
from tests.benchmark.export import challenges_test
from tests.data import lookalikes
from tests.projects.hifimamba_test import CASES, SHORT

ROOT = Path(__file__).parents[1]
README, CONFIGURATION = ROOT / "README.md", ROOT / "docs" / "configuration.md"
RESULTS = ROOT / "docs" / "results.md"
PAPER = ROOT / "docs" / "paper.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "projects").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- Not run by tests/documents_test\.py: (?P<reason>.+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SIZES = {"size": [32, 32], "num_coils": [2, 3]}
MOST_EXCEPTIONS = 5


class Block(NamedTuple):
    """A block of code and why it cannot be run, if so."""

    reason: str | None
    language: str
    text: str


def blocks_of(document: Path) -> list[Block]:
    return [Block(**match.groupdict()) for match in BLOCK.finditer(document.read_text())]


def commands_of(text: str) -> list[list[str]]:
    """The commands of a block in words, as a shell sees them."""
    if text.startswith("$ "):  # a session with what was printed
        text = "".join(line.removeprefix("$ ") for line in text.splitlines(keepends=True) if line.startswith("$ "))
    ours = ("direct", "direct-hifimamba", "python")
    script = "".join(f'{name}() {{ echo {name} "$@"; }}\n' for name in ours) + text
    output = subprocess.run(["bash", "-e", "-c", script], check=True, capture_output=True, text=True).stdout
    return [line.split() for line in output.splitlines()]


class Shell:
    """Runs commands in this process, in a folder of its own, with small sizes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.last_iterations: dict[str, int] = {}
        monkeypatch.chdir(folder)
        # No link: paths in the specification of a benchmark are relative to it.
        shutil.copytree(ROOT / "projects", folder / "projects", ignore=shutil.ignore_patterns("*.pt", "data"))

    def run(self, words: list[str]) -> None:
        program, *arguments = [re.sub("^/data", f"{self.folder}/data", word) for word in words]
        assert program in ("direct", "direct-hifimamba")
        name = arguments[0]
        if name in ("train", "predict"):
            self._shrink(name, arguments)
        if name == "reconstruct":
            arguments[1] = arguments[1].replace("model_49999", "model_5")  # or the name of weights
        if "magnitude" in arguments or {"acdc", "prostate158"} & set(arguments):
            arguments += ["--size", "32", "32"]  # the last one counts
        if name == "benchmark":  # trains several networks of full size: tests/projects composes them
            Specification.load(Path(arguments[1]))
        elif program == "direct":
            self.monkeypatch.setattr(sys, "argv", ["direct", *arguments])
            direct_cli.main()
        else:
            cli.main(arguments)

    def _shrink(self, name: str, arguments: list[str]) -> None:
        options = dict(pairwise(arguments))
        path = options["--cfg"]
        if name == "train":
            config = OmegaConf.load(path)
            self.last_iterations[path] = config.training.num_iterations - 1
            sizes = [f"additional_models.{name}.num_filters=2" for name in config.get("additional_models") or ()]
            write_small(Path(path), [Path(path)], *sizes)
        else:
            checkpoint = Path(options["--checkpoint"])
            if path in self.last_iterations:
                assert checkpoint.name == f"model_{self.last_iterations[path]}.pt"
                arguments[arguments.index("--checkpoint") + 1] = str(checkpoint.with_name("model_5.pt"))
        arguments += ["--device", "cpu", "--num-workers", "0"]


def write_small(path: Path, parts: list[Path], *overrides: str) -> None:
    """Compose a configuration of a network that takes milliseconds and six iterations."""
    parts = [*parts, ROOT / "configs" / "tiny.yaml"]
    path.write_text(to_yaml(compose(parts, [*SHORT, *overrides]), parts, []))


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("direct.environment.setup_logging", lambda *_: None)
    for writer in ("JSONWriter", "TensorboardWriter"):
        monkeypatch.setattr(f"direct.engine.{writer}", lambda path: type("Writer", (), {"write": lambda self: None})())
    yield Shell(tmp_path, monkeypatch)
    signal.signal(signal.SIGINT, handler)


def test_at_most_five_blocks_are_not_run_and_say_why() -> None:
    reasons = [block.reason for document in DOCUMENTS for block in blocks_of(document) if block.reason]
    assert 0 < len(reasons) <= MOST_EXCEPTIONS
    fences = sum(len(re.findall("^```", document.read_text(), flags=re.MULTILINE)) for document in DOCUMENTS)
    assert fences == 2 * sum(len(blocks_of(document)) for document in DOCUMENTS)


def complete_configuration() -> str:
    """The one that docs/configuration.md shows; README has its section `model`."""
    (text,) = [block.text for block in blocks_of(CONFIGURATION) if block.language == "yaml"]
    return text


def undersampled(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """K-space of a slice of the look-alike, and its mask."""
    with h5py.File(next((folder / "data" / "multicoil_val").iterdir())) as file:
        kspace = file["kspace"][:1]
    width = kspace.shape[-1]
    mask = np.arange(width) % 3 == 0
    mask[width // 2 - 4 : width // 2 + 4] = True
    return kspace * mask, mask


def build_data(document: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the commands of a document start from."""
    name = document.parent.name
    if document == RESULTS:
        lookalikes.calgary_campinas(folder / "download", coils=12, num_slices=1, size=(218, 170), num_empty=50)
        lookalikes.calgary_campinas_masks(folder, monkeypatch)
        for file, images in lookalikes.fastmri(folder / "data", "multi").items():
            if (folder / "data" / "multicoil_val" / file).exists():
                challenges_test.write_prediction(folder / "predictions" / "knee" / file, challenges_test.noisy(images))
        challenges_test.write_cmrxrecon(
            folder / "data" / "ChallengeData", folder / "data" / "GroundTruth", folder / "predictions" / "cardiac"
        )
    if document == PAPER:
        lookalikes.m4raw(folder / "download", num_slices=2)
    if document in (README, CONFIGURATION):
        lookalikes.fastmri(folder / "data", "multi", size=32)
        kspace, mask = undersampled(folder)
        with h5py.File(folder / "scan.h5", "w") as file:
            file["kspace"], file["mask"] = kspace, mask
    elif name in CASES:
        CASES[name].build(folder / "download")


# Commands of the others are checked by tests/projects: they train several networks of full size.
WITH_COMMANDS = [
    *(README, CONFIGURATION, RESULTS, PAPER, ROOT / "docs" / "installation.md"),
    ROOT / "projects" / "hifimamba" / "README.md",
    *(document for document in DOCUMENTS if document.parent.name in CASES),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Estimation of sensitivity map of Single-coil data")
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("document", WITH_COMMANDS, ids=lambda path: str(path.relative_to(ROOT).with_suffix("")))
def test_commands_run_one_after_the_other(document: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    build_data(document, shell.folder, monkeypatch)
    for block in blocks_of(document):
        if block.language == "yaml" and "model:" in block.text:
            config = OmegaConf.merge(OmegaConf.create(complete_configuration()), OmegaConf.create(block.text))
            OmegaConf.save(config, "config.yaml")
        if not block.language and not block.reason:
            for words in commands_of(block.text):
                shell.run(words)
    if document == PAPER:
        _check_paper(shell.folder)
    if document == README:
        _reconstruct(next(block.text for block in blocks_of(document) if "Reconstructor" in block.text))


def _check_paper(folder: Path) -> None:
    """Images that lie in [0, 1] as their references do, equal to those of `reconstruct`, and the paper's metrics."""
    reconstructor = Reconstructor.from_checkpoint(folder / "outputs" / "paper" / "m4raw" / "model_5.pt")
    (path,) = (folder / "outputs" / "paper").rglob("metrics_inference.json")
    scores = yaml.safe_load(path.read_text())
    assert len(scores) == 2
    for volume, values in scores.items():
        assert values.keys() == {"paper_ssim_metric", "paper_psnr_metric", "paper_nmse_metric"}
        assert 0 < values["paper_nmse_metric"] < 1
        with h5py.File(folder / "outputs" / "paper" / "predicted" / volume) as file:
            predicted = file["reconstruction"][()]
        assert 0.3 < predicted.max() < 3
        with h5py.File(folder / "data" / "m4raw_paper" / "test_equispaced_4x" / volume) as file:
            kspace, mask = file["kspace"][()], file["mask"][()]
        np.testing.assert_allclose(reconstructor(kspace * mask, mask), predicted.squeeze(), atol=1e-5)


def _reconstruct(text: str) -> None:
    """The README's Python for a trained model; tests/readme_test.py has the others."""
    kspace, mask = undersampled(Path())
    names: dict[str, Any] = {"kspace": kspace, "mask": mask}
    with pytest.warns(UserWarning, match="the training had"):  # of larger images
        exec(text, names)
    assert names["images"].shape == (1, *kspace.shape[-2:])


YAML = [
    (document, block.text)
    for document in DOCUMENTS
    for block in blocks_of(document)
    if block.language == "yaml" and "model:" not in block.text
]


@pytest.mark.slow
@pytest.mark.parametrize(("document", "text"), YAML, ids=lambda value: getattr(value, "stem", ""))
def test_parts_of_a_configuration_train(document: Path, text: str, shell: Shell) -> None:
    """A section `training`, or a data set in the place of that of docs/configuration.md."""
    complete = complete_configuration()
    Path("complete.yaml").write_text(complete)
    lookalikes.fastmri(shell.folder / "download", "multi", size=48)
    prepare(shell.folder / "download", shell.folder / "data", Settings.of("fastmri", coils="multi", slices="central:2"))
    lookalikes.save_nifti(Path("heads/a.nii.gz"), lookalikes.magnitude(0, 8, 40, 40), np.eye(4))
    part, overrides = yaml.safe_load(text), []
    if "training" in part:
        overrides = [f"training.datasets.0.{key}={value}" for key, value in SIZES.items()]
    else:
        dataset = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(complete).inference.dataset, part))
        dataset["transforms"]["masking"] = None  # masks are stored
        part = {"training": {"datasets": [dataset]}, "validation": {"datasets": [dataset]}}
    Path("part.yaml").write_text(yaml.safe_dump(part))
    write_small(Path("config.yaml"), [Path("complete.yaml"), Path("part.yaml")], *overrides)
    words = ["train", "output", "--cfg", "config.yaml", "--device", "cpu", "--num-workers", "0"]
    splits = ("validation",) if "training" in yaml.safe_load(text) else ("training", "validation")
    for split in splits:  # simulated slices have no folder
        words += [f"--{split}-root", "data/val_equispaced_4x"]
    cli.main(words)
    assert Path("output/config/model_5.pt").exists()

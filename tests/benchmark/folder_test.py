from pathlib import Path

import pytest

from direct_hifimamba.benchmark.folder import BenchmarkFolder, RunFolder, slug


@pytest.mark.parametrize(
    ("label", "expected"), [("HiFi-MambaV2", "hifi_mambav2"), ("U-Net 0.5 M", "u_net_0.5_m"), ("a/ä b", "a___b")]
)
def test_slugs_are_safe_file_names(label: str, expected: str) -> None:
    assert slug(label) == expected


def test_nothing_shares_a_place() -> None:
    folder = BenchmarkFolder(Path("out"))
    runs = [
        folder.cell("a", 0),
        folder.cell("a", 1),
        folder.cell("b", 0),
        folder.trial("a", 1e-3),
        folder.trial("a", 1),
    ]
    names = ["specification", "plan", "hashes", "cost", "results_json", "scores", "results_csv"]
    names += ["results_markdown", "report"]
    paths = [getattr(folder, name) for name in names]
    for run in runs:
        paths += [
            run.config,
            run.initialisation,
            run.log,
            run.failure,
            run.run,
            run.predictions("4x"),
            run.scores("4x"),
        ]
    assert len(set(paths)) == len(paths)
    assert all(folder.path in path.parents for path in paths)


def test_runs_are_named_as_direct_names_them() -> None:
    run = RunFolder(Path("cell"))
    assert run.run == run.experiment / run.config.name.removesuffix(".yaml")
    assert run.checkpoint(7) == run.run / "model_7.pt"

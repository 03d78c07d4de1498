"""Every block of code in a Markdown file is executed: small, for six iterations, on look-alikes of the data.

A block that cannot be carries the reason: `<!-- Not run by tests/documents_test.py: reason. -->` in the line above it.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import torch
import yaml
from direct.cli import cli as direct_cli
from omegaconf import OmegaConf

from direct_hifimamba import cli
from direct_hifimamba.data.prepare import prepare
from direct_hifimamba.data.protocol import Settings
from direct_hifimamba.data.simulation.heads import PACKAGED_HEADS
from direct_hifimamba.reconstruction.reconstructor import Reconstructor
from direct_hifimamba.training.compose import compose, to_yaml
from tests.benchmark.export import challenges_test
from tests.data import lookalikes
from tests.helpers import measure
from tests.projects import benchmark_test
from tests.projects.hifimamba_test import CASES, SHORT, TINY
from tests.reconstruction.reconstructor_test import line_mask

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"^(?:<!-- Not run by tests/documents_test\.py: (?P<reason>.+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
MOST_EXCEPTIONS = 5
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
#: A shell hands our commands over, words separated by tabs, and waits. Of make, .ci/run runs the recipes.
PRELUDE = (
    "\n".join(
        f"{name}() {{ printf '%s\\t' {name} \"$@\"; echo; read -r; }}"
        for name in ("direct", "direct-hifimamba", "pip", "python")
    )
    + f"""
git() {{ command git -C '{ROOT}' "$@"; }}
make() {{ command make --dry-run -C '{ROOT}' "$@" > /dev/null; }}
RANK=0
source() {{ make "${{1%%/*}}/.installed"; }}
"""
)


class Block(NamedTuple):
    """A block of code and why it cannot be run, if so."""

    reason: str | None
    language: str
    text: str


def blocks_of(document: Path) -> list[Block]:
    return [Block(**match.groupdict()) for match in BLOCK.finditer(document.read_text())]


def tracked_documents() -> list[Path]:
    if not (ROOT / ".git").exists():  # a copy of the sources, without anything else
        return sorted(ROOT.rglob("*.md"))
    names = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in names.splitlines()]


DOCUMENTS = [document for document in tracked_documents() if blocks_of(document)]


class Site:
    """A folder with data in which the blocks of documents are run one after the other, in this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.last_iterations: dict[str, int] = {}
        self._done: set[tuple[str, ...]] = set()
        self._options: dict[Path, list[str]] = {}
        monkeypatch.chdir(folder)
        # No links: paths in the specification of a benchmark are relative to it.
        for name in ("configs", "projects"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pt", "data"))

    def run(self, block: Block) -> None:
        if block.language == "":
            self._run_script(block.text)
        elif block.language == "python":
            self._run_python(block.text)
        elif block.language == "yaml":
            self._train_with(yaml.safe_load(block.text))
        else:
            assert block.language == "mermaid"  # tests/architecture_test.py compares it with the imports

    def _run_script(self, text: str) -> None:
        if text.startswith("$ "):  # a session with what was printed
            text = "".join(line.removeprefix("$ ") for line in text.splitlines(keepends=True) if line.startswith("$ "))
        with subprocess.Popen(
            ["bash", "-e", "-c", PRELUDE + text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as shell:
            assert shell.stdin is not None and shell.stdout is not None
            try:
                for line in shell.stdout:  # the shell waits for an answer
                    self.run_command(line.removesuffix("\t\n").split("\t"))
                    shell.stdin.write("done\n")
                    shell.stdin.flush()
            except BaseException:
                shell.kill()
                raise
        assert shell.returncode == 0, text

    def run_command(self, words: list[str]) -> None:
        program, *arguments = [re.sub("^/data", f"{self.folder}/data", word) for word in words]
        name = arguments[0]
        if name == "benchmark" or program == "python":  # several documents have them
            if tuple(words) in self._done:
                return
            self._done.add(tuple(words))
        if name in ("train", "predict"):
            self._shrink(name, arguments)
        elif name == "benchmark":
            arguments += self._shrink_benchmark(Path(arguments[1]))
        elif name == "calibrate":
            arguments += ["--number", "2", "--size", "32"]
        elif name == "reconstruct":
            arguments = [re.sub(r"model_\d+\.pt", "model_5.pt", argument) for argument in arguments]
        elif name == "simulate" or "magnitude" in arguments or {"acdc", "prostate158"} & set(arguments):
            arguments += ["--size", "32", "32"]  # the last one counts
        if arguments[:2] == ["simulate", "random"]:
            arguments += ["--number", "2"]
        if program == "pip":  # tests/packaging_test.py installs the package
            extras = re.findall(r"\w+", "".join(re.findall(r"\[(.*?)\]", " ".join(arguments))))
            assert name == "install" and set(extras) <= EXTRAS
        elif program == "python":
            self._run_python_script(Path(name), arguments[1:])
        elif program == "direct":
            self.monkeypatch.setattr(sys, "argv", ["direct", *arguments])
            direct_cli.main()
        else:
            cli.main(arguments)

    def _shrink(self, name: str, arguments: list[str]) -> None:
        options = dict(pairwise(arguments))
        path = options["--cfg"]
        for option in {"--num-machines", "--num-gpus", "--machine-rank", "--dist-url"} & options.keys():
            position = arguments.index(option)  # tests/training/direct_command_test.py runs two processes
            del arguments[position : position + 2]
        if name == "train":
            shutil.rmtree(Path(arguments[1], options.get("--name", Path(path).stem)), ignore_errors=True)
            config = OmegaConf.load(path)
            if "--initialization-checkpoint" in options:
                position = arguments.index("--initialization-checkpoint") + 1
                arguments[position] = re.sub(r"model_\d+", "model_5", arguments[position])
            if config.training.num_iterations > 6:
                self.last_iterations[path] = config.training.num_iterations - 1
                if "--initialization-checkpoint" in options:  # of networks of the same size
                    OmegaConf.save(OmegaConf.merge(config, OmegaConf.from_dotlist(SHORT)), path)
                else:
                    write_small(Path(path), [Path(path)])
        else:
            checkpoint = Path(options["--checkpoint"])
            if path in self.last_iterations:
                assert checkpoint.name == f"model_{self.last_iterations[path]}.pt"
                arguments[arguments.index("--checkpoint") + 1] = str(checkpoint.with_name("model_5.pt"))
        arguments += ["--device", "cpu", "--num-workers", "0"]

    def _shrink_benchmark(self, path: Path) -> list[str]:
        """Leave the last model, a learning rate, a seed and an acceleration, and six iterations; return more options.

        The first benchmark in a folder is run as a whole; the others are checked and planned.
        """
        if path in self._options:  # shrunk already
            return self._options[path]
        options = self._options[path] = ["--stage", "plan"] if self._options else []
        values = benchmark_test.read(path)
        label, model = list(values["models"].items())[-1]
        values |= {"models": {label: self._shrink_model(path, model)}, "baseline": label, "seeds": [0], "device": "cpu"}
        values["accelerations"] = dict(list(values["accelerations"].items())[:1])
        values["budget"] = {"iterations": 6} if "iterations" in values["budget"] else {"minutes": 1e-6}
        if values.get("search"):
            values["search"] = {"learning_rates": values["search"]["learning_rates"][-1:], "budget": {"iterations": 6}}
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return options

    def _shrink_model(self, path: Path, model: dict[str, Any]) -> dict[str, Any]:
        kind = next((Path(name).stem for name in model["configs"] if Path(name).stem in TINY), "hifimamba")
        tiny = [str(self.folder / "configs" / "tiny.yaml")] if kind == "hifimamba" else []
        overrides = [*model.get("overrides", []), *(f"model.{override}" for override in TINY[kind])]
        if "calgary_campinas" in path.parts:  # the processes that train have no look-alike of the challenge's masks
            overrides += ["parameters.mask.name=FastMRIEquispaced", "parameters.mask.center_fractions=[0.08]"]
            overrides.append("additional_models.sensitivity_model.num_filters=2")
        # Initial weights would be those of a model that is left out.
        kept = {key: value for key, value in model.items() if key != "initial_weights"}
        return kept | {"configs": [*model["configs"], *tiny], "overrides": overrides}

    def _run_python_script(self, path: Path, arguments: list[str]) -> None:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        script = importlib.util.module_from_spec(spec)
        self.monkeypatch.setitem(sys.modules, path.stem, script)  # for its dataclasses
        spec.loader.exec_module(script)
        if path.name == "release.py":
            self.monkeypatch.setattr(script, "FOLDER", self.folder / "weights")
        arguments = [re.sub(r"model_\d+", "model_5", word) for word in arguments]
        self.monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        script.main()

    def _train_with(self, part: dict[str, Any]) -> None:
        """Train with the complete configuration, and in place of one of its parts that which a document shows.

        That is the section `model`, the section `training`, or keys of a data set.
        """
        config = OmegaConf.create(complete_configuration())
        if "model" in part:
            OmegaConf.save(OmegaConf.merge(config, part), "config.yaml")  # for the commands that follow
            return
        if "training" not in part:
            dataset = OmegaConf.to_container(OmegaConf.merge(config.inference.dataset, part))
            dataset["transforms"]["masking"] = None  # masks are stored
            part = {"training": {"datasets": [dataset]}, "validation": {"datasets": [dataset]}}
        OmegaConf.save(config, "complete.yaml")
        Path("part.yaml").write_text(yaml.safe_dump(part))
        name = f"part_{len(list(Path().glob('part_*.yaml')))}"
        write_small(Path(f"{name}.yaml"), [Path("complete.yaml"), Path("part.yaml")])
        words = ["direct-hifimamba", "train", "output", "--cfg", f"{name}.yaml", "--validation-root", STORED]
        if "seed" not in part["training"]["datasets"][0]:  # simulated slices have no folder
            words += ["--training-root", STORED]
        self.run_command(words)
        assert Path("output", name, "model_5.pt").exists()

    def _run_python(self, text: str) -> None:
        """Run it with what its comments and arguments name."""
        names: dict[str, Any] = {}
        if "Reconstructor" in text:
            names["kspace"], names["mask"] = undersampled(self.folder)
            expected = {"images": (1, *names["kspace"].shape[-2:])}
        elif "HiFiMambaV2" in text:
            names["y"], names["mask"], names["maps"] = measure(height=16, width=18, coils=2)
            expected = {"image": (1, 16, 18, 2)}
        else:
            names["u"], names["delta"], names["z"] = torch.randn(3, 1, 4, 7)
            names["A"], names["D"], names["delta_bias"] = -torch.rand(4, 2), *torch.randn(2, 4)
            names["B"], names["C"] = torch.randn(2, 1, 2, 7)
            expected = {"y": (1, 4, 7)}
        exec(re.sub(r"model_\d+", "model_5", text), names)
        assert {name: tuple(names[name].shape) for name in expected} == expected


STORED = "data/val_equispaced_4x"


def write_small(path: Path, parts: list[Path]) -> None:
    """Compose a configuration of a network that takes milliseconds, of small slices and six iterations."""
    parts = [*parts, ROOT / "configs" / "tiny.yaml"]
    config = compose(parts, SHORT)
    for additional in (config.get("additional_models") or {}).values():
        additional.num_filters = 2
    for dataset in (*config.training.datasets, *config.validation.datasets):
        if dataset.name == "SimulatedMultiCoil":
            dataset.update(shape=[32, 32], num_coils=[2, 3], length=2)
    path.write_text(to_yaml(config, parts, []))


def complete_configuration() -> str:
    """The one that docs/configuration.md shows; README has its section `model`."""
    (text,) = [block.text for block in blocks_of(ROOT / "docs" / "configuration.md") if block.language == "yaml"]
    return text


def undersampled(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """K-space of a slice of the look-alike, and its mask."""
    with h5py.File(next((folder / "data" / "multicoil_val").iterdir())) as file:
        kspace = file["kspace"][:1]
    width = kspace.shape[-1]
    mask = np.arange(width) % 3 == 0
    mask[width // 2 - 4 : width // 2 + 4] = True
    return kspace * mask, mask


def write_heads(folder: Path) -> None:
    for index, head in enumerate(PACKAGED_HEADS):
        lookalikes.save_nifti(folder / f"{head.name}.nii.gz", lookalikes.magnitude(index, 8, 40, 40), np.eye(4))


def nothing(site: Site) -> None:
    """What documents start from whose commands bring their data."""


def knees(site: Site) -> None:
    folder = site.folder
    lookalikes.fastmri(folder / "data", "multi", size=32)
    prepare(folder / "data", folder / "prepared", Settings.of("fastmri", coils="multi", slices="central:2"))
    for path in (folder / "prepared").iterdir():
        path.rename(folder / "data" / path.name)
    kspace, mask = undersampled(folder)
    with h5py.File("scan.h5", "w") as file:
        file["kspace"], file["mask"] = kspace, mask
    write_heads(Path("heads"))
    Path("config.yaml").write_text(complete_configuration())


def predictions(site: Site) -> None:
    folder = site.folder
    lookalikes.calgary_campinas(folder / "download", coils=12, num_slices=1, size=(218, 170), num_empty=50)
    lookalikes.calgary_campinas_masks(folder, site.monkeypatch)
    for file, images in lookalikes.fastmri(folder / "data", "multi").items():
        if (folder / "data" / "multicoil_val" / file).exists():
            challenges_test.write_prediction(folder / "predictions" / "knee" / file, challenges_test.noisy(images))
    challenges_test.write_cmrxrecon(
        folder / "data" / "ChallengeData", folder / "data" / "GroundTruth", folder / "predictions" / "cardiac"
    )


def volumes(site: Site) -> None:
    for split in ("training", "test"):
        lookalikes.save_nifti(Path("volumes", split, "a.nii.gz"), lookalikes.magnitude(0, 3, 40, 40), np.eye(4))


def heads(site: Site) -> None:
    site.monkeypatch.setattr("direct_hifimamba.commands.heads.download_heads", write_heads)
    kspace = lookalikes.centred_fft(lookalikes.measure(lookalikes.magnitude(0, 1, 32, 32), 3, 0))
    mask = np.arange(32) % 3 == 1
    mask[10:22] = True
    with h5py.File("projects/multicoil/scan.h5", "w") as file:
        file["kspace"], file["mask"] = kspace * mask, mask


def scans(site: Site) -> None:
    for seed, split in enumerate(("train", "val", "test")):
        kspace = lookalikes.centred_fft(lookalikes.measure(lookalikes.magnitude(seed, 2, 32, 32), 4, seed))
        Path("raw", split).mkdir(parents=True)
        np.save(Path("raw", split, f"{split}.npy"), kspace)
    with h5py.File("scan.h5", "w") as file:
        file["kspace"] = kspace[:1] * line_mask()


def download(name: str) -> Callable[[Site], None]:
    return lambda site: CASES[name].build(site.folder / "download")


#: What documents start from, and in which order they are run there; the others start from nothing.
SITES: dict[str, tuple[Callable[[Site], None], list[str]]] = {
    "knees": (
        knees,
        [
            "docs/cluster.md",
            "README.md",
            "docs/configuration.md",
            "docs/python.md",
            "docs/sensitivities.md",
            "docs/training_data.md",
        ],
    ),
    "results": (predictions, ["docs/results.md"]),
    "benchmark": (heads, ["projects/hifimamba_benchmark/README.md", "projects/hifimamba/ablations/README.md"]),
    "multicoil": (heads, ["docs/weights/multicoil.md", "projects/multicoil/README.md", "docs/uncertainty.md"]),
    "singlecoil": (heads, ["docs/weights/singlecoil.md"]),
    "paper": (lambda site: lookalikes.m4raw(site.folder / "download", num_slices=2), ["docs/paper.md"]),
    "fine-tuning": (scans, ["docs/fine_tuning.md"]),
    "demo": (volumes, ["projects/hifimamba_demo/README.md"]),
    **{name: (download(name), [f"projects/hifimamba/{name}/README.md"]) for name in CASES if " " not in name},
}
PLACED = [name for _, names in SITES.values() for name in names]
SITES["others"] = (
    nothing,
    [name for name in (str(path.relative_to(ROOT)) for path in DOCUMENTS) if name not in PLACED],
)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("direct.environment.setup_logging", lambda *_: None)
    for writer in ("JSONWriter", "TensorboardWriter"):
        monkeypatch.setattr(f"direct.engine.{writer}", lambda path: type("Writer", (), {"write": lambda self: None})())
    yield Site(tmp_path, monkeypatch)
    signal.signal(signal.SIGINT, handler)


def test_at_most_five_blocks_are_not_run_and_say_why() -> None:
    reasons = [block.reason for document in DOCUMENTS for block in blocks_of(document) if block.reason]
    assert 0 < len(reasons) <= MOST_EXCEPTIONS
    for document in tracked_documents():  # no block in another form, which would not be found
        fences = re.findall(r"^\s*(?:```|~~~)", document.read_text(), flags=re.MULTILINE)
        assert len(fences) == 2 * len(blocks_of(document)), document


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Estimation of sensitivity map of Single-coil data")
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.filterwarnings("ignore:.*the training had")  # larger images
@pytest.mark.parametrize("name", SITES)
def test_blocks_run_one_after_the_other(name: str, site: Site) -> None:
    build, documents = SITES[name]
    build(site)
    for document in documents:
        if document in ("projects/multicoil/README.md", "projects/hifimamba_benchmark/README.md"):  # run in its folder
            site.monkeypatch.chdir(Path(document).parent)
        if document == "docs/uncertainty.md":  # which has three such networks
            checkpoint = torch.load("runs/hifimamba/model_5.pt", weights_only=True)
            for number in (1, 2, 3):
                for value in checkpoint["model"].values():
                    value *= 1.01
                torch.save(checkpoint, f"seed_{number}.pt")
            shutil.copy("hifimamba.yaml", "config.yaml")
            for path in Path().glob("images.*"):
                path.unlink()
        for block in blocks_of(ROOT / document):
            if not block.reason:
                try:
                    site.run(block)
                except BaseException as error:
                    error.add_note(f"{document}:\n{block.text}")
                    raise
    if name == "paper":
        _check_paper(site.folder)
    if name == "fine-tuning":
        _check_fine_tuning()


def _check_fine_tuning() -> None:
    """It began with the weights in the package; a single coil can be reconstructed."""
    before, after = (torch.load(path, weights_only=True) for path in ("multicoil/seed_1.pt", "runs/seed_1/model_5.pt"))
    for name in before:
        steps = [
            (after[name][key] - value).abs().max() for key, value in before[name].items() if value.is_floating_point()
        ]
        assert 0 < max(steps) < 0.01
    with h5py.File("scan.h5") as file:
        single = file["kspace"][:, :1]
    assert Reconstructor.from_checkpoint("runs/seed_1/model_5.pt")(single, line_mask()).shape == (1, 32, 32)


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

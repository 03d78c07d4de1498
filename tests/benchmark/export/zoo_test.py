"""Pairs of configuration and weights, loaded by `direct predict` and by deepinv; the upload to a local hub."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docutils.core
import numpy as np
import pytest
import torch
from direct import environment
from omegaconf import OmegaConf

from direct_hifimamba import cli
from direct_hifimamba.benchmark.export.zoo import export_zoo
from direct_hifimamba.data.formats.hdf5 import write_volume
from direct_hifimamba.reconstruction.pretrained import CONFIG_NAME
from tests.helpers import TINY
from tests.reconstruction.reconstructor_test import (
    HEIGHT,
    MODELS,
    OURS,
    VARNET,
    WIDTH,
    line_mask,
    make_config,
    predict,
    save_experiment,
    simulate,
)

METRICS = {
    "a.h5": {"calgary_campinas_ssim_metric": 0.9, "calgary_campinas_psnr_metric": 35.0, "fastmri_nmse_metric": 0.01},
    "b.h5": {"calgary_campinas_ssim_metric": 0.8, "calgary_campinas_psnr_metric": 36.0, "fastmri_nmse_metric": 0.02},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Folders that `direct train` has written, with the scaling and sensitivities that deepinv takes for granted."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(environment, "setup_logging", lambda *_: None)
        folder = tmp_path_factory.mktemp("runs")
        torch.manual_seed(0)
        yield {name: save_experiment(folder / str(index), name).parent for index, name in enumerate((OURS, VARNET))}


def write_inference(path: Path, accelerations: list[int] | None = None) -> Path:
    inference = make_config(OURS)["inference"]
    transforms = inference["dataset"]["transforms"]
    transforms["sensitivity_map_estimation"]["sensitivity_maps_gaussian"] = 0.7
    transforms["normalization"]["scale_percentile"] = 0.99
    if accelerations:
        transforms["masking"] = {"name": "CalgaryCampinas", "accelerations": accelerations}
    OmegaConf.save({"inference": inference}, path)
    return path


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # DIRECT's
@pytest.mark.parametrize(("model_name", "centered"), [(OURS, True), (OURS, False), (VARNET, True)])
def test_pair_is_read_by_direct_and_by_deepinv(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_name: str, centered: bool
) -> None:
    from deepinv.models import DIRECTModel
    from deepinv.physics import MultiCoilMRI

    run, mask = runs[model_name], line_mask()
    if not centered:
        config = OmegaConf.load(run / CONFIG_NAME)
        for kind in ("forward", "backward"):
            config.physics[f"{kind}_operator"] += "(centered=False)"
        run = tmp_path / "run"
        run.mkdir()
        OmegaConf.save(config, run / CONFIG_NAME)
        for name in ("last_model.txt", "model_7.pt"):
            (run / name).symlink_to(runs[model_name] / name)
    inference = write_inference(tmp_path / "inference.yaml")
    cli.main(["export", "zoo", str(run), str(tmp_path / "zoo"), "--inference", str(inference)])
    name = model_name.rpartition(".")[2].lower()
    assert {path.name for path in (tmp_path / "zoo").iterdir()} == {
        f"{name}.yaml",
        f"{name}.pt",
        "table.rst",
        "README.md",
    }

    kspace = simulate()
    checkerboard = (-1.0) ** np.add.outer(np.arange(HEIGHT), np.arange(WIDTH))
    stored = (kspace if centered else kspace * checkerboard).astype(np.complex64)
    volume = tmp_path / "data" / "volume.h5"
    volume.parent.mkdir()
    write_volume(volume, stored, {}, mask)
    weights = tmp_path / "zoo" / f"{name}.pt"
    images = predict(weights, weights.with_suffix(".yaml"), volume, tmp_path / "out", monkeypatch)

    model = DIRECTModel(name, weights)
    state = torch.load(weights)
    assert state.keys() == {"model", *model.engine.models}
    for key, network in {"model": model.engine.model, **model.engine.models}.items():
        assert state[key].keys() == network.state_dict().keys()
    physics = MultiCoilMRI(torch.from_numpy(np.tile(mask, (HEIGHT, 1))).float(), img_size=(1, 2, HEIGHT, WIDTH))
    measured = torch.view_as_real(torch.from_numpy(kspace * mask)).movedim(-1, 1)
    theirs = model(measured, physics).norm(dim=1).numpy()
    theirs *= (images * theirs).sum() / (theirs * theirs).sum()
    np.testing.assert_allclose(theirs, images, rtol=0, atol=1e-4 * images.max())


def test_pairs_and_rows_for_every_acceleration(runs: dict[str, Path], tmp_path: Path) -> None:
    inference = [write_inference(tmp_path / f"{number}.yaml", [number]) for number in (5, 10)]
    metrics = tmp_path / "poisson_5x" / "metrics_inference.json"
    metrics.parent.mkdir()
    metrics.write_text(json.dumps(METRICS))
    folder = tmp_path / "zoo"
    assert export_zoo(runs[OURS], folder, "net", inference, [metrics], "me/models") == ["net_5x", "net_10x"]
    for name in ("net_5x", "net_10x"):
        config = OmegaConf.load(folder / f"{name}.yaml")
        assert config.inference.dataset.transforms.masking.accelerations == [int(name[4:-1])]
        assert set(config) == {"model", "physics", "inference"}
    table = f".. list-table::\n\n{(folder / 'table.rst').read_text('utf-8')}"
    document = docutils.core.publish_doctree(table, settings_overrides={"halt_level": 1, "report_level": 1})
    rows = [[entry.astext() for entry in row] for row in document.findall(lambda node: node.tagname == "row")]
    times = "\N{MULTIPLICATION SIGN}"
    assert rows == [
        ["HiFiMambaV2", "net_5x", f"5{times}", "0.850", "35.5", "-", "0.0150"],
        ["HiFiMambaV2", "net_10x", f"10{times}", "-", "-", "-", "-"],
    ]
    card = (folder / "README.md").read_text("utf-8")
    assert r"| net_5x | 5" + times + r" | 0.850 | 35.5 | \- | 0.0150 |" in card
    assert "hf download me/models" in card and "2511.18534" in card


REFINEMENT = {"model_name": "sensitivity.sensitivity.SensitivityRefinement", "num_filters": 2}
RECON = {"model_name": "mambarecon.mambarecon.MambaRecon", "hidden_channels": 8, "blocks_per_stage": [1]}
ROLL = {"model_name": "mambaroll.mambaroll.MambaRoll", "num_rolls": 1, "channels_per_scale": [3, 2, 2]}


@pytest.mark.parametrize(
    ("sections", "needs_plugin", "papers"),
    [
        ({"model": {"model_name": OURS, **TINY}}, True, ["2511.18534"]),
        ({"model": {**TINY, "model_name": "HiFiMamba.HiFiMamba.HiFiMambaV2"}}, True, ["2511.18534"]),
        ({"model": RECON}, True, ["2409.12401"]),
        ({"model": ROLL}, True, ["2412.09331"]),
        (MODELS[VARNET], False, []),
        (MODELS[VARNET] | {"additional_models": {"sensitivity_model": REFINEMENT}}, True, []),
    ],
    ids=["ours", "other case", "MambaRecon", "MambaRoll", "DIRECT's", "DIRECT's with our sensitivities"],
)
def test_card_asks_for_the_plugin_where_a_network_is_ours(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sections: dict[str, Any],
    needs_plugin: bool,
    papers: list[str],
) -> None:
    monkeypatch.setattr(environment, "setup_logging", lambda *_: None)
    monkeypatch.setitem(MODELS, "it", sections)
    export_zoo(save_experiment(tmp_path / "run", "it").parent, tmp_path / "zoo")
    card = (tmp_path / "zoo" / "README.md").read_text("utf-8")
    (installed,) = re.findall("^With (.*) installed:$", card, re.MULTILINE)
    assert ("direct-hifimamba" in installed) == needs_plugin
    assert re.findall(r"\[arXiv:(.*?)\]", card) == papers


class Hub(BaseHTTPRequestHandler):
    """What the Hugging Face hub answers to an upload; every file is part of the commit."""

    files: dict[str, bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer: dict[str, Any] = {"errors": [], "warnings": []}
        if self.path == "/api/repos/create":
            answer = {"url": f"http://{self.headers['Host']}/me/models"}
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
        elif "/commit/" in self.path:
            assert self.headers["Authorization"] == "Bearer hf_test"
            for entry in (json.loads(line) for line in body.splitlines()):
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            answer = {"commitUrl": f"http://{self.headers['Host']}/me/models/commit/1", "commitOid": "1" * 40}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        pass


def test_pair_is_uploaded(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Hub, "files", {}, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        cli.main(["export", "zoo", str(runs[OURS]), str(tmp_path / "zoo"), "--push", "me/models"])
        server.shutdown()
    assert Hub.files == {path.name: path.read_bytes() for path in (tmp_path / "zoo").iterdir()}
    assert len(Hub.files) == 4

    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", "zoo", str(runs[OURS]), str(tmp_path / "again"), "--push", "me/models"])
    assert "hf upload me/models" in capsys.readouterr().err
    assert len(list((tmp_path / "again").iterdir())) == 4


def test_what_is_no_run_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has 0 trainings \(last_model\.txt\); expected one"):
        export_zoo(tmp_path, tmp_path / "zoo")
    run = tmp_path / "run"
    run.mkdir()
    (run / CONFIG_NAME).write_bytes((runs[OURS] / CONFIG_NAME).read_bytes())
    (run / "last_model.txt").write_text("7")
    (run / "model_7.pt").write_bytes((runs[VARNET] / "model_7.pt").read_bytes())
    with pytest.raises(ValueError, match=r"model_7\.pt does not fit .*config\.yaml: it lacks model\.\S+ and \d+ more"):
        export_zoo(run, tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "net.pt").touch()
    with pytest.raises(FileExistsError, match="choose a new or empty folder"):
        export_zoo(runs[OURS], tmp_path / "zoo")
    section = tmp_path / "section.yaml"
    section.write_text("model: {}\n")
    with pytest.raises(ValueError, match=r"section\.yaml has no section 'inference'"):
        export_zoo(runs[OURS], tmp_path / "new", inference=[section])

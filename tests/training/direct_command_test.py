"""Tests of `direct-hifimamba train`: its options, and that it is deterministic."""

import gc
import pickle
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from direct.launch import launch
from omegaconf import OmegaConf

from direct_hifimamba.benchmark.plan.configurations import compose_models, training_config
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.benchmark.run.processes import start_process
from direct_hifimamba.files import lock_folder
from direct_hifimamba.training import direct_command
from direct_hifimamba.training.learning_rate import CosineSchedule
from tests.benchmark.small_benchmark import write_data, write_specification
from tests.helpers import replace_training_loop

ITERATIONS, CHECKPOINT = 10, 6


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Arguments of a small training, all but the folder to write to."""
    write_data(tmp_path / "data")
    configs = compose_models(Specification.load(write_specification(tmp_path)))
    config = training_config(configs["U-Net"], ITERATIONS, 0.2)
    for dataset in config.training.datasets:
        OmegaConf.update(dataset, "transforms.use_seed", False, force_add=True)
    config.training.checkpointer.checkpoint_steps = CHECKPOINT
    OmegaConf.save(config, tmp_path / "run.yaml")
    words = ["--cfg", str(tmp_path / "run.yaml"), "--device", "cpu", "--num-workers", "0", "--seed", "1"]
    for split in ("training", "validation"):
        words += [f"--{split}-root", str(tmp_path / "data" / "train")]
    return words


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "run" / f"model_{ITERATIONS - 1}.pt", weights_only=False)["model"]


def assert_same(once: dict[str, torch.Tensor], again: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(once, again, rtol=0, atol=0)


def test_garbage_collections_leave_out_what_was_imported(capsys: pytest.CaptureFixture[str]) -> None:
    gc.unfreeze()
    with pytest.raises(SystemExit, match="0"):
        direct_command.main(["predict", "--help"])
    assert len(gc.get_objects()) < gc.get_freeze_count() / 10


def test_launch_gets_one_function_that_ranks_can_unpickle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(direct_command, "launch", lambda *arguments: seen.extend(arguments))
    direct_command.main(["train", str(tmp_path), *words, "--num-gpus", "2", direct_command.COSINE_OPTION])
    setup, *machines, args = pickle.loads(pickle.dumps(seen))
    assert setup is direct_command.setup_train
    assert machines[:3] == [1, 2, 0]
    assert (args.cosine_schedule, args.decay_matrices, args.experiment_dir) == (True, False, tmp_path)
    assert launch.__code__.co_varnames[:5] == ("func", "num_machines", "num_gpus", "machine_rank", "dist_url")


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--seed", "-1"], "--seed is -1; expected 0 or more"), (["--noise", "one"], "--noise has to be of the form")],
)
def test_wrong_arguments(
    capsys: pytest.CaptureFixture[str], words: list[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as error:
        direct_command.main(["train", "folder", *words, *options])
    assert message in capsys.readouterr().err + str(error.value)


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("matrices", [False, True])
def test_every_model_has_the_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], cosine: bool, matrices: bool
) -> None:
    seen: list[Any] = []

    def training_loop(engine: Any, *_: Any, **__: Any) -> None:
        seen.extend([engine._require_optimizer(), engine._Engine__lr_scheduler])

    replace_training_loop(monkeypatch, training_loop)
    options = [direct_command.COSINE_OPTION] * cosine + [direct_command.MATRICES_OPTION] * matrices
    direct_command.main(["train", str(tmp_path), *words, *options])
    optimizer, lr_scheduler = seen
    assert isinstance(lr_scheduler, CosineSchedule) == cosine
    decay = OmegaConf.load(tmp_path / "run.yaml").training.get("weight_decay", 1e-6)
    assert [group["weight_decay"] for group in optimizer.param_groups] == ([decay, 0] if matrices else [decay])
    dimensions = [{min(parameter.ndim, 2) for parameter in group["params"]} for group in optimizer.param_groups]
    assert dimensions == ([{2}, {1}] if matrices else [{1, 2}])


def test_validation_can_be_left_out(tmp_path: Path, words: list[str]) -> None:
    config = OmegaConf.load(tmp_path / "run.yaml")
    del config["validation"]
    config.training.num_iterations = 7  # DIRECT validates from iteration 5
    OmegaConf.save(config, tmp_path / "run.yaml")
    direct_command.main(["train", str(tmp_path), *words])
    assert (tmp_path / "run" / "model_6.pt").exists()


def test_two_schedules_are_refused(tmp_path: Path, words: list[str]) -> None:
    config = OmegaConf.load(tmp_path / "run.yaml")
    config.model = {
        "model_name": "hifimamba.hifimamba.HiFiMambaV2",
        "hidden_channels": 8,
        "blocks_per_stage": [1],
        "state_size": 4,
        "learning_rate_schedule": "paper",
    }
    OmegaConf.save(config, tmp_path / "run.yaml")
    with pytest.raises(ValueError, match=r"--cosine-schedule is given, but .* is 'paper'"):
        direct_command.main(["train", str(tmp_path), *words, direct_command.COSINE_OPTION])


def test_files_without_the_masks_that_pass_mask_reads(tmp_path: Path, words: list[str]) -> None:
    config = OmegaConf.load(tmp_path / "run.yaml")
    config.training.datasets[0].pass_mask = True
    OmegaConf.save(config, tmp_path / "run.yaml")
    with pytest.raises(ValueError, match=r"a\.h5 and 1 more of 2 files have no array 'mask', which pass_mask: true"):
        direct_command.main(["train", str(tmp_path), *words])


def test_a_resumed_training_ends_as_one_without_a_break(tmp_path: Path, words: list[str]) -> None:
    direct_command.main(["train", str(tmp_path / "whole"), *words, direct_command.COSINE_OPTION])
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    run = tmp_path / "resumed" / "run"
    (run / f"model_{ITERATIONS - 1}.pt").unlink()
    (run / "last_model.txt").write_text(str(CHECKPOINT))
    direct_command.main(["train", str(tmp_path / "resumed"), *words, direct_command.COSINE_OPTION, "--resume"])
    assert_same(weights(tmp_path / "resumed"), weights(tmp_path / "whole"))


def test_checkpoints_of_an_earlier_training_are_not_overwritten(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs" / "run").mkdir(parents=True)
    last_model = tmp_path / "runs" / "run" / direct_command.LAST_MODEL
    last_model.write_text("5")
    with pytest.raises(SystemExit):
        direct_command.main(["train", str(tmp_path / "runs"), *words])
    assert "has checkpoints of an earlier training, which would be overwritten" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        direct_command.main(["train", str(tmp_path / "runs"), *words, "--resume"])
    assert f"{last_model} names no complete checkpoint, and the folder has none" in capsys.readouterr().err
    last_model.with_name("model_5.pt").touch()
    last_model.unlink()
    with pytest.raises(SystemExit):
        direct_command.main(["train", str(tmp_path / "runs"), *words])
    assert "has checkpoints of an earlier training, which would be overwritten" in capsys.readouterr().err


def test_a_training_resumes_with_its_own_networks_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    replace_training_loop(monkeypatch, lambda *_, **__: None)
    path = tmp_path / "run.yaml"
    direct_command.main(["train", str(tmp_path), *words])
    torch.save({"model": {}}, tmp_path / "run" / "model_5.pt")
    stored = (tmp_path / "run" / "config.yaml").read_bytes()
    for key, value in (("model.num_filters", 12), ("physics.use_noise_matrix", True)):
        config = OmegaConf.load(path)
        OmegaConf.update(config, key, value, force_add=True)
        OmegaConf.save(config, tmp_path / "other.yaml")
        with pytest.raises(SystemExit):
            direct_command.main(
                ["train", str(tmp_path), *words, "--cfg", str(tmp_path / "other.yaml"), "--name", "run", "--resume"]
            )
        assert re.search(
            rf"a training with {key}: .*, and the configuration has {re.escape(str(value))}\. Resume with",
            capsys.readouterr().err,
        )
        assert (tmp_path / "run" / "config.yaml").read_bytes() == stored
    launched: list[Any] = []
    monkeypatch.setattr(direct_command, "launch", lambda *arguments: launched.append(arguments))
    config = OmegaConf.load(path)
    config.training.num_iterations += 1  # which may change
    OmegaConf.update(config, "physics.noise_matrix_scaling", 2.0, force_add=True)  # as this may
    OmegaConf.save(config, path)
    direct_command.main(["train", str(tmp_path), *words, "--resume"])
    for damaged in (b"", bytes(100), stored[:-5] + b"\n  a: b: c"):  # as after a power failure
        (tmp_path / "run" / "config.yaml").write_bytes(damaged)
        direct_command.main(["train", str(tmp_path), *words, "--resume"])
        assert "config.yaml is damaged, so that the networks are not compared" in capsys.readouterr().out
    assert len(launched) == 4


@pytest.mark.parametrize("content", ["", "7", None])
def test_a_training_resumes_from_the_last_complete_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], content: str | None
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    torch.save({"model": {}}, run / "model_5.pt")
    torch.save({"model": {}}, run / "model_4.pt")
    (run / "model_7.pt").write_bytes((run / "model_5.pt").read_bytes()[:100])  # as after a power failure
    torch.save({"model": {"weight": torch.ones(5000)}}, run / "model_6.pt")
    damaged = bytearray((run / "model_6.pt").read_bytes())
    damaged[8192:12288] = bytes(4096)
    (run / "model_6.pt").write_bytes(damaged)
    if content is not None:
        (run / direct_command.LAST_MODEL).write_text(content)
    monkeypatch.setattr(direct_command, "launch", lambda *_: None)
    direct_command.main(["train", str(tmp_path), *words, "--resume"])
    assert (run / direct_command.LAST_MODEL).read_text() == "5"


def test_a_key_that_direct_ignores_is_refused(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = OmegaConf.load(tmp_path / "run.yaml")
    OmegaConf.update(config.training.datasets[0], "filename_lists", ["train.lst"], force_add=True)
    OmegaConf.save(config, tmp_path / "run.yaml")
    with pytest.raises(SystemExit):
        direct_command.main(["train", str(tmp_path), *words])
    assert "run.yaml: The key of training.datasets.0 is 'filename_lists'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_references_are_resolved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = OmegaConf.load(tmp_path / "run.yaml")
    other = {**config.training.datasets[0]} | {"transforms": "${training.datasets.0.transforms}"}
    config.training.datasets = [config.training.datasets[0], other]
    OmegaConf.save(config, tmp_path / "run.yaml")
    launched: list[Any] = []
    monkeypatch.setattr(direct_command, "launch", lambda *arguments: launched.append(arguments))
    direct_command.main(["train", str(tmp_path), *words])
    assert len(launched) == 1
    OmegaConf.save(OmegaConf.merge(config, {"training": {"lr": "${training.rate}"}}), tmp_path / "run.yaml")
    with pytest.raises(SystemExit):
        direct_command.main(["train", str(tmp_path), *words])
    assert "run.yaml: A reference cannot be resolved: Interpolation key 'training.rate'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[a, b]", "model: {a"])
def test_a_configuration_that_is_not_one(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(SystemExit):
        direct_command.main(["train", str(tmp_path), *words])
    assert re.search("run.yaml (has no keys|is not valid YAML)", capsys.readouterr().err)


def test_a_second_training_waits_for_the_first(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-m", "direct_hifimamba.cli", "train", str(tmp_path), *words]
    with lock_folder(tmp_path / "run"):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        said = next(line for line in process.stderr if "waiting until it ends" in line)
        torch.save({"model": {}}, tmp_path / "run" / "model_5.pt")
    _, errors = process.communicate(timeout=300)
    assert str(tmp_path / "run") in said
    assert process.returncode == 2 and "has checkpoints of an earlier training" in errors


@pytest.mark.slow
def test_a_training_can_be_repeated_with_any_number_of_workers(tmp_path: Path, words: list[str]) -> None:
    for name, options in (("once", []), ("again", ["--num-workers", "2"]), ("other", ["--seed", "2"])):
        direct_command.main(["train", str(tmp_path / name), *words, *options])
    assert_same(weights(tmp_path / "once"), weights(tmp_path / "again"))
    with pytest.raises(AssertionError):
        assert_same(weights(tmp_path / "once"), weights(tmp_path / "other"))


def _train_rank(arguments: list[str]) -> None:
    """Run `direct-hifimamba train` as on one of several machines with a GPU, but on the processor."""
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 1, set_device=lambda _: None)
    gloo = SimpleNamespace(
        init_process_group=lambda backend, **options: torch.distributed.init_process_group("gloo", **options),
        new_group=torch.distributed.new_group,
    )
    here = SimpleNamespace(spawn=lambda function, nprocs, args, daemon: function(0, *args))

    def parallel(model: torch.nn.Module, device_ids: list[int], **_: Any) -> torch.nn.Module:
        return torch.nn.parallel.DistributedDataParallel(model)

    with (
        mock.patch.multiple("direct.launch", torch=SimpleNamespace(cuda=cuda), dist=gloo, mp=here),
        mock.patch("direct.engine.DistributedDataParallel", parallel),
    ):
        direct_command.main(arguments)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_the_documented_command_for_two_machines_trains_as_one_process_on_all_their_data(
    tmp_path: Path, words: list[str]
) -> None:
    config = OmegaConf.load(tmp_path / "run.yaml")
    sensitivity_model = {"model_name": "unet.unet_2d.UnetModel2d", "in_channels": 2, "out_channels": 2}
    config.additional_models = {"sensitivity_model": {**sensitivity_model, "num_filters": 4, "num_pool_layers": 2}}
    config.training.update(batch_size=2, optimizer="SGD", lr=0.001)  # steps that are linear in the gradient, and small
    OmegaConf.save(config, tmp_path / "run.yaml")
    direct_command.main(["train", str(tmp_path / "one"), *words])

    config.training.batch_size = 1
    OmegaConf.save(config, tmp_path / "run.yaml")
    document = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    command = re.search(r"^direct-hifimamba (train (?:.*\\\n)*.*--num-machines.*)$", document, re.MULTILINE)
    assert command is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        arguments = command[1].replace("\\\n", " ").replace("$RANK", str(rank)).split()
        options = arguments[arguments.index("--num-machines") :]
        options[options.index("--num-gpus") + 1] = "1"
        options[options.index("--dist-url") + 1] = f"tcp://127.0.0.1:{port}"
        processes.append(start_process(_train_rank, (["train", str(tmp_path / "two"), *words, *options],)))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for part in ("model", "sensitivity_model"):
        one, two = (_update(tmp_path / name / "run", part) for name in ("one", "two"))
        assert one.abs().max() > 1e-6
        # Rounding depends on the batch, and the loss is not smooth. Without averaging, the difference is 0.9.
        torch.testing.assert_close(two, one, rtol=0, atol=0.05 * one.abs().max().item())


def _update(folder: Path, part: str) -> torch.Tensor:
    """How the weights of a model have changed from the first checkpoint to the last."""
    before, after = (
        torch.cat([value.flatten() for value in checkpoint[part].values()])
        for number in (CHECKPOINT, ITERATIONS - 1)
        for checkpoint in [torch.load(folder / f"model_{number}.pt", weights_only=False)]
    )
    return after - before

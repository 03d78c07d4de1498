"""The Triton kernels without a GPU: values in the interpreter, and code for several compute capabilities."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ops.scan_cases import make_inputs

triton = pytest.importorskip("triton")


@pytest.mark.slow
def test_values_in_the_interpreter() -> None:
    """In a process of its own: the interpreter has to be chosen before Triton is imported."""
    module = Path(__file__).with_name("triton_interpreted.py")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(module)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


class _Launches:
    """Stands for a kernel and notes what it is launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.arguments: list[dict[str, Any]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.arguments.append(dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs)

        return launch


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    from direct_hifimamba.ops.selective_scan import triton_kernels

    chosen: list[torch.Tensor] = []  # in place of the device of a tensor, as there is no second one here
    launched: list[bool] = []

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        chosen.append(tensor)
        yield
        chosen.pop()

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **kwargs: launched.append(len(chosen) == 1)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for name in ("_ends_kernel", "_chain_kernel", "_scan_kernel", "_backward_kernel"):
        monkeypatch.setattr(triton_kernels, name, Kernel())
    triton_kernels.selective_scan_triton(*make_inputs(), True)  # its backward pass runs on a thread of that device
    assert launched == [True] * 3


def _specialise(value: Any, path: tuple[int, ...]) -> tuple[Any, dict[tuple[int, ...], Any]]:
    """Type of an argument as Triton's launcher takes it, and the constants in it: None and the integer 1."""
    if isinstance(value, tuple):
        items = [_specialise(item, (*path, i)) for i, item in enumerate(value)]
        return tuple(kind for kind, _ in items), {
            key: constant for _, found in items for key, constant in found.items()
        }
    if value is None or (isinstance(value, int) and value == 1):
        return "constexpr", {path: value}
    if isinstance(value, torch.Tensor):
        assert value.dtype == torch.float32
        return "*fp32", {}
    return "i32", {}


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "length"), [(75, 70), (80, 7), (90, 70)])
def test_every_launch_compiles(capability: int, length: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from direct_hifimamba.ops.selective_scan import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    names = ("_ends_kernel", "_chain_kernel", "_scan_kernel", "_backward_kernel")
    launches = [_Launches(getattr(triton_kernels, name)) for name in names]
    for name, launch in zip(names, launches, strict=True):
        monkeypatch.setattr(triton_kernels, name, launch)
    groups, layout = (1, "channels_last") if length < 64 else (2, "channels_first")
    inputs = make_inputs(1, 8, length, 16, groups, layout=layout, requires_grad=True)
    triton_kernels.selective_scan_triton(*inputs, True).sum().backward()

    for launch in launches:
        assert launch.arguments
        for arguments in launch.arguments:
            options = {name: value for name, value in arguments.items() if name not in launch.kernel.arg_names}
            signature, constants = {}, {}
            for i, parameter in enumerate(launch.kernel.params):
                value = arguments[parameter.name]
                if parameter.is_constexpr:
                    kind, found = "constexpr", {(i,): value}
                else:
                    kind, found = _specialise(value, (i,))
                signature[parameter.name] = kind
                constants.update(found)
            source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants)
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
            assert compiled.asm["cubin"]
            assert compiled.metadata.shared <= 48 * 1024

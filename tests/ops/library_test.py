import os

import pytest
import torch

from direct_hifimamba.ops import library

needs_library = pytest.mark.skipif(not library.INSTRUCTION_SETS, reason="the C++ extension is not built")


@needs_library
def test_an_unknown_instruction_set_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.ISA_VARIABLE, "mmx")
    with pytest.raises(ValueError, match=r"DIRECT_HIFIMAMBA_ISA is 'mmx'; expected one of .*portable"):
        library.instruction_set()


def test_threads_are_those_of_pytorch_and_each_has_work() -> None:
    torch.set_num_threads(2)
    assert library.number_of_threads(10**9, 1000) == 2
    assert library.number_of_threads(1999, 1000) == 1
    assert library.number_of_threads(1, 1000) == 1


def test_a_missing_extension_is_one_log_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    loaded, reason = library._load()
    assert loaded is None
    assert "not built" in reason
    assert len(caplog.records) == 1
    assert os.linesep not in caplog.text.rstrip()


@needs_library
def test_a_library_of_another_version_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    class OtherLibrary:
        """Has none of the functions."""

    monkeypatch.setattr(library.ctypes, "CDLL", lambda path: OtherLibrary())
    loaded, reason = library._load()
    assert loaded is None
    assert "native_instruction_sets" in reason

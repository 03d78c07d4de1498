import pytest

from direct_hifimamba.ops import library


@pytest.fixture(params=library.INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set of this machine in turn; none, and the test is skipped, without the library."""
    monkeypatch.setenv(library.ISA_VARIABLE, request.param)
    assert library.instruction_set() == request.param
    return request.param

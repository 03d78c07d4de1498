import pytest

from direct_hifimamba.commands import info
from direct_hifimamba.ops.selective_scan import BACKENDS, resolve_backend


def test_every_backend_and_the_choice_of_auto_are_named() -> None:
    text = info.describe()
    for backend in BACKENDS:
        assert f"  {backend} " in text
    assert f"takes {resolve_backend('auto', info.torch.device('cpu'))} on cpu" in text


def test_the_reason_for_a_missing_backend_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable_because(name: str, kind: str, dtype: object) -> str:
        return "it runs on cuda tensors only, not on cpu" if kind == "cpu" else "it cannot be imported (no such thing)"

    monkeypatch.setattr(info, "unavailable_because", unavailable_because)
    assert info._describe_backend("mamba_ssm") == "not available: it cannot be imported (no such thing)"

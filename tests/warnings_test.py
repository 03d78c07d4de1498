"""Warnings are errors in tests where they point at a module of ours, and nowhere else (pyproject.toml)."""

import warnings

import pytest

from direct_hifimamba.ops import library


@pytest.mark.parametrize("module", ["direct_hifimamba", library.__name__, "direct_hifimamba_hook", "tests.cli_test"])
def test_ours_is_an_error(module: str) -> None:
    with pytest.raises(DeprecationWarning, match="old"):
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module)


def test_one_that_points_at_its_caller_is_an_error() -> None:
    def of_another_package() -> None:
        warnings.warn("used wrongly", stacklevel=2)

    with pytest.raises(UserWarning, match="used wrongly"):
        of_another_package()


@pytest.mark.parametrize("module", ["triton.language.core", "direct.train", "torch", "ast"])
def test_one_of_others_is_not(module: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module)
    assert len(caught) == 1

"""Tests of direct_hifimamba.data.data_sets."""

import pytest

from direct_hifimamba.data.data_sets import select_slices


@pytest.mark.parametrize("num_slices", [0, 1, 2, 19, 20, 21, 36, 37, 256])
@pytest.mark.parametrize("count", [0, 1, 20, 30])
def test_rules_for_slices(num_slices, count):
    assert list(select_slices("all", num_slices)) == list(range(num_slices))

    inner = list(select_slices(f"inner:{count}", num_slices))
    assert inner == [index for index in range(num_slices) if count <= index < num_slices - count]

    central = list(select_slices(f"central:{count}", num_slices))
    assert len(central) == min(count, num_slices)
    if central:
        below, above = central[0], num_slices - 1 - central[-1]
        assert 0 <= above - below <= 1
        assert central == list(range(central[0], central[-1] + 1))


@pytest.mark.parametrize("rule", ["", "some", "central", "central:", "inner:-1", "all:3", "inner:3 ", "central:x"])
def test_no_rule(rule):
    with pytest.raises(ValueError, match=r"rule for slices is .*; expected all, central:N or inner:N"):
        select_slices(rule, 10)

"""Tests of direct_hifimamba.files."""

import pytest

from direct_hifimamba.files import replace_when_complete


def test_replace_when_complete_keeps_the_old_file_until_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(*, fail: bool) -> None:
        with replace_when_complete(path) as partial:
            partial.write_text("new")
            assert path.read_text() == "old"
            if fail:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        write(fail=True)
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["old"]
    write(fail=False)
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["new"]

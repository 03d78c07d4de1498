"""Tests of direct_hifimamba.files."""

import pathlib
import threading

import pytest

from direct_hifimamba.files import fill_folder, first_and_count, lock_folder, replace_when_complete


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


def test_a_locked_folder_is_waited_for(tmp_path, capsys):
    order = []

    def work() -> None:
        with lock_folder(tmp_path):
            order.append("second")

    thread = threading.Thread(target=work)
    with lock_folder(tmp_path):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]
    assert f"Another process writes to {tmp_path}; waiting until it ends" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_is_filled_completely_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "a"

    def fill(*, fail: bool) -> None:
        with fill_folder(folder) as partial:
            (partial / "b.txt").write_text("new")
            assert not folder.exists()
            if fail:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        fill(fail=True)
    assert not list(tmp_path.iterdir())
    fill(fail=False)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")] == ["a/b.txt"]
    with pytest.raises(FileExistsError, match="choose a new or empty folder"):
        fill(fail=False)
    monkeypatch.chdir(folder)
    (folder / "b.txt").unlink()
    number = folder.stat().st_ino
    with fill_folder(pathlib.Path()) as partial:
        (partial / "c.txt").touch()
    assert folder.stat().st_ino == number and pathlib.Path("c.txt").exists()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")] == ["a/c.txt"]


def test_names_are_counted():
    assert first_and_count(["a.h5"]) == "a.h5"
    assert first_and_count(["a.h5", "b.h5", "c.h5"]) == "a.h5 and 2 more"

import argparse
import importlib
import re
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from direct.cli import cli as direct_cli

import direct_hifimamba
from direct_hifimamba import cli
from tests.extras import missing_packages


def install_command(
    monkeypatch: pytest.MonkeyPatch, main: Callable[[argparse.Namespace], None], extra: str | None = None
) -> None:
    """Add a subcommand `fake` with one argument `number`."""
    module = SimpleNamespace(add_arguments=lambda parser: parser.add_argument("number", type=int), main=main)
    monkeypatch.setitem(sys.modules, "direct_hifimamba.commands.fake", module)
    monkeypatch.setitem(cli.COMMANDS, "fake", cli.Command("do nothing", extra))


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_follows_the_convention(name: str) -> None:
    extra = cli.COMMANDS[name].extra
    if extra and (missing := missing_packages(extra)):
        pytest.skip(f"the extra {extra} is not installed: {', '.join(missing)}")
    module = importlib.import_module(f"direct_hifimamba.commands.{name.replace('-', '_')}")
    module.add_arguments(argparse.ArgumentParser())
    assert callable(module.main)


def test_a_command_gets_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[int] = []
    install_command(monkeypatch, lambda args: received.append(args.number))
    cli.main(["fake", "7"])
    assert received == [7]


@pytest.mark.parametrize(
    "error", [ValueError("acceleration is 0;\n expected more"), FileNotFoundError(2, "No such file", "x.h5")]
)
def test_user_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(args: argparse.Namespace) -> None:
        raise error

    install_command(monkeypatch, fail)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["fake", "7"])
    assert capsys.readouterr().err == f"direct-hifimamba: error: {' '.join(str(error).split())}\n"


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(args: argparse.Namespace) -> None:
        import no_such_package  # noqa: F401

    install_command(monkeypatch, fail, extra="data")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["fake", "7"])
    message = capsys.readouterr().err
    assert "no_such_package" in message
    assert "direct-hifimamba[data]" in message


def test_defects_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: argparse.Namespace) -> None:
        raise ZeroDivisionError

    install_command(monkeypatch, fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["fake", "7"])


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["fake"], ["fake", "seven"], ["fake", "7", "8"]])
def test_wrong_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    install_command(monkeypatch, lambda args: None)
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "usage: direct-hifimamba" in capsys.readouterr().err


def test_overview_imports_no_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "importlib", None)
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    overview = capsys.readouterr().out
    assert all(name in overview for name in [*cli.COMMANDS, *cli.DIRECT_COMMANDS])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.split() == ["direct-hifimamba", direct_hifimamba.__version__]


@pytest.mark.parametrize("name", cli.DIRECT_COMMANDS)
def test_commands_of_direct_have_its_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["direct", name, "--help"])
    usages = []
    for main in (cli.main, direct_cli.main):
        with pytest.raises(SystemExit, match="0"):
            main()
        usages.append(set(re.findall(r"--[a-z-]+", capsys.readouterr().out)))
    more = {"--cosine-schedule", "--decay-matrices"} if name == "train" else set()
    assert usages[0] - usages[1] == more
    assert usages[1] <= usages[0]


def test_commands_of_direct_are_all_known(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["direct", "no-such-command"])
    with pytest.raises(SystemExit):
        direct_cli.main()
    choices = capsys.readouterr().err.partition("(choose from ")[2].rstrip(")\n")
    assert {choice.strip("' ") for choice in choices.split(",")} == set(cli.DIRECT_COMMANDS)

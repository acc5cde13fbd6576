"""fairseq-train with this plugin."""

import argparse
import importlib
import os
import sys

import rnndrop_plugin
from rnndrop_plugin.cli.command import fail_for_package

USER_DIR = os.path.abspath(next(iter(rnndrop_plugin.__path__)))


def add_plugin_arguments(parser: argparse.ArgumentParser, source: str = "architecture") -> None:
    """Add the flags that :func:`complete` fills in; ``source`` names what determines the task."""
    parser.add_argument("--user-dir", metavar="DIR", help="(default: this package, which is always registered)")
    parser.add_argument("--task", metavar="TASK", help=f"(default: that of the {source})")


def complete(arguments: list[str], task: str | None = None) -> list[str]:
    """The arguments of one of fairseq's commands, with --user-dir and --task added if they are missing.

    Args:
        task: None in training, where the architecture's task is already the default.
    """
    given = names_of(arguments)
    completed = list(arguments)
    if "--user-dir" not in given:
        completed += ["--user-dir", USER_DIR]
    if "--task" not in given and task is not None:
        completed += ["--task", task]
    return completed


def names_of(arguments: list[str]) -> set[str]:
    """The flags that are given, without their values."""
    return {argument.partition("=")[0] for argument in arguments}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Run fairseq-train with this plugin: --user-dir and the architecture's --task are filled in.",
        usage="%(prog)s DATA --arch ARCHITECTURE ...",
        epilog="All other arguments are those of fairseq-train. --arch ARCHITECTURE --help lists them, those of the "
        "architecture last; with --criterion or --optimizer it lists theirs, too. docs/flags.md explains those of the "
        "plugin.",
        allow_abbrev=False,
        add_help=names_of(sys.argv[1:]).isdisjoint(("--arch", "-a")),
    )
    add_plugin_arguments(parser)
    parser.parse_known_args()
    hand_over("train", complete(sys.argv[1:]))


def hand_over(command: str, arguments: list[str]) -> None:
    """Run one of fairseq's commands, such as ``train`` or ``eval_lm``, in this process."""
    try:
        cli_main = importlib.import_module(f"fairseq_cli.{command}").cli_main  # takes seconds
    except ModuleNotFoundError as error:
        fail_for_package(error)
    rnndrop_plugin.register()
    sys.argv = [f"fairseq-{command.replace('_', '-')}", *arguments]
    cli_main()

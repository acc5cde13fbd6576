"""The command ``rnndrop``: a table of its subcommands, and the code that finds and runs one of them."""

import importlib
import sys
from importlib.metadata import version
from typing import NamedTuple

from rnndrop_plugin.cli.command import fail, run


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        module: the module in ``rnndrop_plugin.cli`` whose ``main`` reads ``sys.argv``.
        summary: what it does, for the list of commands.
        is_fairseqs: whether it runs a command of fairseq, which reports bad input itself and prints a traceback for
            any other error.
    """

    module: str
    summary: str
    is_fairseqs: bool = False


COMMANDS = {
    "prepare ptb": Command("prepare_ptb", "the Penn Treebank, or texts of the same layout, for language models"),
    "prepare text": Command("prepare_text", "raw text for language models: split, tokenised, vocabulary cut off"),
    "prepare conll": Command("prepare_conll", "words and tags in columns, entities or parts of speech, for taggers"),
    "prepare labelled": Command("prepare_labelled", "texts with any labels, label<TAB>text, for classifiers"),
    "prepare semeval": Command("prepare_semeval", "SemEval's messages and weakly labelled tweets, for classifiers"),
    "prepare temporal-order": Command("prepare_temporal_order", "the paper's Temporal Order task, for classifiers"),
    "train": Command("fairseq_train", "fairseq-train with this plugin", is_fairseqs=True),
    "train-cpu": Command("train_cpu", "fairseq-train in several processes, on a machine without a GPU"),
    "eval": Command("fairseq_eval", "evaluate a checkpoint by fairseq's command for its task", is_fairseqs=True),
    "tag": Command("tag", "tag the words of texts with a trained tagger"),
    "classify": Command("classify", "classify texts with a trained classifier"),
    "plot": Command("plot", "plot the training curves of fairseq-train's logs"),
}


def describe_commands(group: str = "") -> str:
    """The help of ``rnndrop``, or of a group of its commands such as ``prepare``."""
    names = [name for name in COMMANDS if not group or name.startswith(f"{group} ")]
    width = max(map(len, names))
    lines = [f"  {name:<{width}}  {COMMANDS[name].summary}" for name in names]
    what = "Prepare data:" if group else "Recurrent dropout for fairseq: prepare data, train, evaluate and use models."
    prog = f"rnndrop {group}".strip()
    return "\n".join([f"usage: {prog} COMMAND ...", "", what, "", *lines, "", "COMMAND --help explains a command.", ""])


def main() -> None:
    """Run the subcommand that the command line names."""
    words = sys.argv[1:]
    for length in (2, 1):
        name = " ".join(words[:length])
        if len(words) >= length and name in COMMANDS:
            sys.argv = [f"rnndrop {name}", *words[length:]]
            command = importlib.import_module(f"rnndrop_plugin.cli.{COMMANDS[name].module}").main
            return command() if COMMANDS[name].is_fairseqs else run(command)
    if words[:1] == ["--version"]:
        return print(f"rnndrop {version('rnndrop-plugin')}")
    group = words.pop(0) if words and any(name.startswith(f"{words[0]} ") for name in COMMANDS) else ""
    if words[:1] in (["--help"], ["-h"]):
        return print(describe_commands(group), end="")
    sys.argv[0] = f"rnndrop {group}".strip()
    names = dict.fromkeys(name.removeprefix(f"{group} ").partition(" ")[0] for name in COMMANDS if group in name)
    fail(f"{f'{words[0]!r} is not a command' if words else 'a command is missing'}, expected one of {', '.join(names)}")

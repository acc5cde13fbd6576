"""The --help of fairseq's commands. fairseq prints it before it reads which architecture, task etc. are chosen."""

import argparse
import dataclasses

from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_REGISTRY
from omegaconf import MISSING

from rnndrop_plugin.errors import flag_of

FLAGS = ("-h", "--help")


class _WithDefaults(argparse.HelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        unsaid = action.default is False or action.default in (None, "", MISSING, argparse.SUPPRESS)  # 0 == False
        return text if unsaid or "default" in text else f"{text} (default: %(default)s)".lstrip()


def print_help(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    """Print the help of ``parser`` with a group of flags for each chosen part, that of the architecture last.

    Args:
        parser: one of fairseq's.
        chosen: what is chosen: ``task``, ``arch`` if the command has it, and a name in each of fairseq's registries.
    """
    parser.formatter_class = _WithDefaults
    classes = {kind: registry["registry"] for kind, registry in REGISTRIES.items()}
    for kind, known in {**classes, "task": TASK_REGISTRY, "arch": ARCH_MODEL_REGISTRY}.items():
        name = getattr(chosen, kind, None)
        if name is None:
            continue
        group = parser.add_argument_group(f"{flag_of(kind)} {name}")
        if hasattr(known[name], "add_args"):
            known[name].add_args(group)
        elif name in REGISTRIES[kind]["dataclass_registry"]:
            gen_parser_from_dataclass(group, REGISTRIES[kind]["dataclass_registry"][name]())
    model = MODEL_DATACLASS_REGISTRY.get(ARCH_MODEL_NAME_REGISTRY.get(getattr(chosen, "arch", None)))
    if model is not None:  # its add_args leaves the defaults out
        defaults = {field.name: field.default for field in dataclasses.fields(model)}
        parser.set_defaults(**{name: x for name, x in defaults.items() if not str(x).startswith("${")})
    parser.print_help()

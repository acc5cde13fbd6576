"""Plot the training curves of fairseq-train's logs."""

import argparse
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rnndrop_plugin.cli.arguments import positive_number
from rnndrop_plugin.files import atomic_write
from rnndrop_plugin.training_log import entries


def curve(log: Sequence[dict], metric: str, prefixes: Sequence[str]) -> tuple[list[int], list[float]]:
    """The numbers of updates, in order, and the values of ``metric`` (such as "ppl") after them.

    If a resumed run logged an update again, its value counts. Both lists are empty if the log has no value.

    Args:
        log: the :func:`~rnndrop_plugin.training_log.entries` of a run.
        prefixes: which statistics to take; the first one that the log has is used. "" stands for the means over
            --log-interval updates, "train_" for those over an epoch, "valid_" for the validations.
    """
    for prefix in prefixes:
        values = {}
        for entry in log:
            with suppress(KeyError, TypeError, ValueError, OverflowError):  # other statistics, or not from fairseq
                values[int(float(entry[f"{prefix}num_updates"]))] = float(entry[f"{prefix}{metric}"])
        if values:
            return sorted(values), [values[update] for update in sorted(values)]
    return [], []


def both_curves(path: Path, metric: str) -> list[tuple[list[int], list[float]]]:
    """The curves of the training and of the validation, one of which may be empty.

    Raises:
        ValueError: both are empty, or no value is a finite number.
    """
    log = list(entries(path))
    curves = [curve(log, metric, ("", "train_")), curve(log, metric, ("valid_",))]
    if not any(updates for updates, _ in curves):
        raise ValueError(
            f"{path}: has neither train_{metric} nor valid_{metric}; was it written with --log-format json?"
        )
    if not any(math.isfinite(value) for _, values in curves for value in values):
        raise ValueError(f"{path}: no {metric} is a finite number, there is nothing to draw")
    return curves


def subplots(output: Path, *arguments, **keywords) -> tuple:
    """A figure and its axes; the arguments are those of matplotlib's function of the same name.

    Args:
        output: where :func:`save` will write the figure.

    Raises:
        ValueError: the ending of ``output`` is not that of a picture.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would log that it builds its font cache
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is one
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(*arguments, layout="constrained", **keywords)
    kinds = figure.canvas.get_supported_filetypes().keys() - {"pgf"}  # this needs LaTeX
    if output.suffix[1:].lower() not in kinds:
        pyplot.close(figure)
        raise ValueError(f"{output}: its ending must be that of a picture: {', '.join(sorted(kinds))}")
    return figure, axes


def save(figure, output: Path) -> None:
    """Write a figure completely or not at all, and close it."""
    from matplotlib import pyplot

    with atomic_write(output) as new:
        figure.savefig(new)
    pyplot.close(figure)


def draw(
    curves: Sequence[Sequence[tuple[list[int], list[float]]]],
    labels: Sequence[str],
    output: Path,
    ylabel: str,
    title: str = "",
    top: float | None = None,
) -> None:
    """Draw the curves of runs against the number of updates, the training dashed and the validation solid.

    Args:
        curves: the :func:`both_curves` of each run.
        labels: the names of the runs.
        output: the picture file; its ending determines the format.
        ylabel: the label of the y-axis.
        top: the upper end of the y-axis.

    Raises:
        ValueError: the ending is not that of a picture.
    """
    figure, axes = subplots(output, figsize=(7, 4.5))
    for number, (label, (training, validation)) in enumerate(zip(labels, curves, strict=True)):
        if training[0]:
            axes.plot(*training, "--", linewidth=1, color=f"C{number}", label=f"{label} training".strip())
        if validation[0]:
            axes.plot(*validation, "-", marker=".", color=f"C{number}", label=f"{label} validation".strip())
    axes.set(xlabel="updates", ylabel=ylabel, title=title)
    axes.set_ylim(top=top)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, output)


def names_of(logs: Sequence[Path]) -> list[str]:
    """The names of the log files, or of their folders if files share a name, as those of reproduce.py do."""
    names = [path.stem for path in logs]
    return names if len(set(names)) == len(names) else [str(path.parent) for path in logs]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Plot the training curves of one or more runs of fairseq-train: a metric of the training (dashed) "
        "and of the validation (solid) against the number of updates. The logs are what fairseq-train writes "
        "to standard output with --log-format json."
    )
    parser.add_argument("logs", type=Path, nargs="+", metavar="LOG")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="picture to write, such as a .png or .svg"
    )
    parser.add_argument(
        "--labels", nargs="+", metavar="LABEL", help="names of the runs (default: those of the files or their folders)"
    )
    parser.add_argument(
        "--metric", default="ppl", help="the metric's name in the log: ppl, nll_loss, f1 ... (default: ppl)"
    )
    parser.add_argument(
        "--max",
        type=positive_number,
        metavar="Y",
        help="upper end of the y-axis, useful if the first epochs dwarf the rest",
    )
    parser.add_argument("--title", default="")
    args = parser.parse_args()
    if args.labels and len(args.labels) != len(args.logs):
        parser.error(f"{len(args.logs)} logs and {len(args.labels)} --labels")
    labels = args.labels or (names_of(args.logs) if len(args.logs) > 1 else [""])
    curves = [both_curves(path, args.metric) for path in args.logs]

    names = {"ppl": "perplexity", "nll_loss": "bits per token"}
    draw(curves, labels, args.output, names.get(args.metric, args.metric), args.title, args.max)

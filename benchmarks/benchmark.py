"""Measure what recurrent dropout costs, compared with torch.nn without dropout in the same run."""

import argparse
import json
import platform
import sys
from pathlib import Path

import torch

from benchmarks.layers import GATES, SHAPES, Figure, Shape, growth, product_rate, rows, timings
from benchmarks.memory import memory
from benchmarks.report import TITLES, plot, table
from rnndrop_plugin.cli.arguments import positive, positive_number
from rnndrop_plugin.cli.plot import subplots
from rnndrop_plugin.files import write_text
from rnndrop_plugin.ops import c_library
from rnndrop_plugin.progress import progress_bar

SECTIONS = tuple(TITLES)


def machine() -> dict:
    """What the figures were measured on."""
    instructions = None if c_library.unavailable() else c_library.instructions()
    return {
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "compiled recurrence": instructions or f"not available: {c_library.unavailable()}",
    }


def shape_type(text: str) -> Shape:
    try:
        sizes = [int(x) for x in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) != 4 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not TIME,BATCH,INPUT,HIDDEN")
    return Shape(*sizes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare layers with recurrent dropout with those of torch.nn without dropout, and with the step "
        "loop that recurrent dropout would otherwise need. The layers are measured in turn and medians are printed, "
        "but only an idle machine gives reliable figures."
    )
    parser.add_argument(
        "--sections",
        nargs="*",
        choices=SECTIONS,
        default=list(SECTIONS),
        help="which comparisons to run on the CPU (default: all)",
    )
    parser.add_argument("--families", nargs="+", choices=GATES, default=list(GATES), help="default: all")
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=shape_type,
        metavar="TIME,BATCH,INPUT,HIDDEN",
        default=[Shape(*shape) for shape in SHAPES],
        help="sizes of the work (default: those of docs/speed.md)",
    )
    parser.add_argument("--threads", type=positive, help="default: torch's choice")
    parser.add_argument(
        "--seconds", type=positive_number, default=15, help="for each comparison; at least 5 repetitions (default: 15)"
    )
    parser.add_argument(
        "--end-to-end",
        type=Path,
        nargs="?",
        const=True,
        metavar="DATA",
        help="also compare the words per second of fairseq-train and, without a GPU, those of two processes with those "
        "of one, each with one thread. DATA is a prepared folder or one with the Penn Treebank (default: Python's "
        "reference manual). If prepare_conll.py has made it, taggers are compared",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the training ratios (.png, .svg)")
    args = parser.parse_args()
    for path in (args.json, args.plot):
        if path and not path.absolute().parent.is_dir():
            parser.error(f"{path}: no such folder")
        if path and path.is_dir():
            parser.error(f"{path} is a folder")
    if args.plot and "training" not in args.sections:
        parser.error("--plot needs the section training")
    if args.plot:
        subplots(args.plot)  # fail now if the picture cannot be drawn
    if args.threads:
        torch.set_num_threads(args.threads)

    rate = product_rate(min(1, args.seconds))
    print(", ".join(f"{name}: {value}" for name, value in machine().items()))
    print(f"torch's matrix product: {rate / 1e9:.0f} GFLOP/s at best")
    print("Columns: ratio, median, share (time of the products alone at that rate / time), layer [backend]")
    figures: list[Figure] = []
    for section in args.sections:
        with progress_bar(desc=section, unit=" steps") as progress:
            if section == "memory":
                found = list(memory(args.families, args.shapes, progress))
            elif section == "rows":
                found = list(rows(args.families, args.shapes, args.seconds, rate, progress))
            elif section == "growth":
                found = growth(args.families, args.shapes[0], args.seconds, rate, progress)
            else:
                found = list(timings(section, args.families, args.shapes, args.seconds, rate, progress))
        print(f"\n{TITLES[section].format(f'({args.shapes[0]})')}{table(found)}", flush=True)
        figures += found
    if args.plot:
        plot(figures, args.plot)

    speeds: list = []

    def write() -> None:
        if args.json:
            result = {
                **machine(),
                "product rate": rate,
                "figures": [figure._asdict() | {"shape": list(figure.shape)} for figure in figures],
                "end to end": [speed._asdict() for speed in speeds],
            }
            write_text(args.json, json.dumps(result, indent=1) + "\n")

    write()  # write now, in case a training fails
    if args.end_to_end:
        sys.modules.pop("fairseq", None)  # this part needs the real one
        from benchmarks.end_to_end import end_to_end, is_tagged, scaling, taggers

        data = None if args.end_to_end is True else args.end_to_end
        on_gpu = torch.cuda.is_available()
        threads = {"threads": args.threads}
        if data is not None and is_tagged(data):
            parts = [("fairseq-train: words per second / those of a tagger without dropout", taggers, threads)]
        else:
            parts = [("fairseq-train: words per second / those of fairseq's lstm_lm", end_to_end, threads)]
            if not on_gpu:
                parts += [("train_cpu.py, update dropout: words per second / those of one process", scaling, {})]
        for title, measure, options in parts:
            found = measure(data, **options)
            print(f"\n{title}\n")
            for speed in found:
                counted = speed.operations is not None and not on_gpu  # the rate is a CPU's
                share = f"{speed.words_per_second * speed.operations / rate:7.0%}" if counted else ""
                print(f"  {speed.ratio:6.2f} {speed.words_per_second:9.0f} words/s {share}  {speed.name}")
            speeds += found
            write()

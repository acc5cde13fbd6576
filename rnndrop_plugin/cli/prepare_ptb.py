"""Prepare the Penn Treebank, or three other text files laid out like it, for language modelling with fairseq."""

import argparse
from pathlib import Path

from rnndrop_plugin.cli.arguments import positive
from rnndrop_plugin.cli.destination import add_destination_argument, destination
from rnndrop_plugin.cli.splits import SPLITS, Counts, Sentence, describe_dictionary, write_splits
from rnndrop_plugin.data.text import characters, find_file, read_lines
from rnndrop_plugin.data.tokenization import Tokenization, text_sizes

# The (sentences, tokens with one </s> per sentence) of Mikolov's preprocessed Penn Treebank
PUBLISHED = {
    "word": {"train": (42068, 929589), "valid": (3370, 73760), "test": (3761, 82430)},
    "char": {"train": (42068, 5017482), "valid": (3370, 393042), "test": (3761, 442423)},
}


def sentences(path: Path, lines: list[str], level: str) -> list[Sentence]:
    """A sentence for each line: its words, or its characters, with outer spaces removed and ``_`` for inner ones."""
    symbols = str.split if level == "word" else lambda line: characters(line.strip())
    return [Sentence(f"{path}, line {number}", symbols(line)) for number, line in enumerate(lines, 1)]


def compare_with_published(path: Path, counts: Counts, published: tuple[int, int]) -> str:
    """How the counts of a file compare with the published ones, if they agree or the file has the published name."""
    if counts[:2] == published:
        return "; as published"
    if path.name.startswith("ptb."):
        return f"; the published file has {published[0]:,} sentences, {published[1]:,} tokens"
    return ""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Prepare the Penn Treebank for language modelling with fairseq: writes dict.txt, "
        "{train,valid,test}.{bin,idx} and tokenizer.json, which says how the text was cut. The source folder holds "
        "ptb.train.txt, ptb.valid.txt and ptb.test.txt, or train.txt, valid.txt and test.txt, which may be .gz, in "
        "UTF-8 with one sentence per line; any text of this layout will do. </s> is added to each line. If the "
        "training text has <unk>, as the Penn Treebank does, words that it lacks become <unk>. If it has none, such "
        "words are an error, unless --min-count makes <unk> of rare words.",
    )
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="folder with the three text files")
    add_destination_argument(parser)
    parser.add_argument(
        "--level",
        choices=("word", "char"),
        default="word",
        help="whether symbols are words or single characters, with _ for a space, </s> for the newline, and <unk> "
        "spelled out (default: %(default)s)",
    )
    parser.add_argument(
        "--min-count",
        type=positive,
        default=1,
        metavar="N",
        help="replace symbols that occur fewer than N times in the training text, or not at all, by <unk> "
        "(default: %(default)s, no cut-off)",
    )
    args = parser.parse_args()

    paths = {split: find_file(args.source, (f"ptb.{split}.txt", f"{split}.txt")) for split in SPLITS}
    with destination(args.dest) as folder:
        lines = {split: list(read_lines(path)) for split, path in paths.items()}
        splits = {split: sentences(path, lines[split], args.level) for split, path in paths.items()}
        entries, counts = write_splits(folder, splits, min_count=args.min_count)
        sizes = {split: text_sizes(line.strip() for line in lines[split]) for split in SPLITS}
        Tokenization("characters" if args.level == "char" else None, splits=sizes).save(folder)
    for split, path in paths.items():
        comparison = compare_with_published(path, counts[split], PUBLISHED[args.level][split])
        print(f"{split}: {counts[split]}{comparison}; from {path}")
    print(describe_dictionary(args.dest, entries))

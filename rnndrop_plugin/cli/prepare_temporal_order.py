"""Make the data of the paper's Temporal Order task: classify a sequence by the order of its two meaningful symbols."""

import argparse
import random

from rnndrop_plugin.cli.arguments import positive
from rnndrop_plugin.cli.destination import add_destination_argument, destination
from rnndrop_plugin.cli.splits import Sentence, write_splits
from rnndrop_plugin.data.streams import LABEL, WORD
from rnndrop_plugin.data.tokenization import Tokenization

SIZES = {
    "train": 6400,  # 200 mini-batches of 32
    "valid": 2000,  # the paper has no validation set
    "test": 10000,
}
SYMBOLS = "ABCD"


def draw(generator: random.Random, length: int) -> tuple[str, str]:
    """Draw a sequence and its class (Semeniuta et al. 2016, section 4.1).

    There is an A or B at a random place in the first third, and another one in the second third. All other symbols are
    C or D. Everything is drawn uniformly and independently.

    Args:
        length: a multiple of 3.

    Returns:
        ``length`` symbols, and the two that are A or B, in order: AA, AB, BA or BB.
    """
    symbols = generator.choices("CD", k=length)
    label = "".join(generator.choices("AB", k=2))
    third = length // 3
    symbols[generator.randrange(third)] = label[0]
    symbols[third + generator.randrange(third)] = label[1]
    return "".join(symbols), label


def sequence_length(text: str) -> int:
    """An argparse type: a multiple of 3, at least 3."""
    if positive(text) % 3:
        raise argparse.ArgumentTypeError(f"{text} does not divide into three equal parts")
    return int(text)


def seed(text: str) -> int:
    """An argparse type: a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Make the paper's Temporal Order data (section 4.1) for classification with fairseq. Each "
        "sequence has three equal parts, with an A or B at a random place in the first part and another one in the "
        "second; all other symbols are C or D. The class is the order of these two: AA, AB, BA or BB. "
        f"Writes {SIZES['train']:,} sequences for training, {SIZES['test']:,} for testing and, unlike the paper, "
        f"{SIZES['valid']:,} for validation. The symbols are in word/, the classes in label/, and one-hot "
        "vectors of the symbols in vectors.txt (for --decoder-embed-path). The same length and seed give the same "
        "data.",
    )
    parser.add_argument(
        "--length",
        type=sequence_length,
        required=True,
        metavar="N",
        help="number of symbols in a sequence, a multiple of 3; the paper has 15 (short) and 30 (medium)",
    )
    parser.add_argument("--seed", type=seed, default=1, metavar="N", help="seed of the random generator (default: 1)")
    add_destination_argument(parser)
    args = parser.parse_args()

    generator = random.Random(args.seed)
    words, labels = {}, {}
    for split, size in SIZES.items():
        drawn = [draw(generator, args.length) for _ in range(size)]
        words[split] = [Sentence(f"{split} {number}", symbols) for number, (symbols, _) in enumerate(drawn, 1)]
        labels[split] = [Sentence(f"{split} {number}", [label]) for number, (_, label) in enumerate(drawn, 1)]
    with destination(args.dest) as folder:
        for stream, sentences in ((WORD, words), (LABEL, labels)):
            write_splits(folder / stream, sentences)
        vectors = (f"{symbol} {' '.join(str(int(symbol == other)) for other in SYMBOLS)}\n" for symbol in SYMBOLS)
        Tokenization(None).save(folder)
        (folder / "vectors.txt").write_text("".join(vectors))
    print(f"{args.dest}: {', '.join(f'{size:,} sequences for {split}' for split, size in SIZES.items())}")

"""Prepare raw text for language modelling with fairseq: split, tokenise, cut off the vocabulary."""

import argparse
from pathlib import Path

import sentencepiece
from sacremoses import MosesTokenizer
from tqdm import tqdm

from rnndrop_plugin.cli.arguments import fraction, language, positive
from rnndrop_plugin.cli.destination import add_destination_argument, destination
from rnndrop_plugin.cli.splits import SPLITS, UNK, Sentence, write_splits
from rnndrop_plugin.data.text import read_lines


def read_units(path: Path, by: str) -> list[Sentence]:
    """The sentences of a file, not yet tokenised: its lines, or its paragraphs with their lines joined by spaces."""
    units, paragraph = [], []
    for number, line in enumerate([*read_lines(path), ""], 1):
        line = line.strip()
        if line:
            paragraph.append(line)
        if paragraph and (by == "line" or not line):
            first = number if by == "line" else number - len(paragraph)
            units.append(Sentence(f"{path}, line {first}", " ".join(paragraph)))
            paragraph = []
    return units


def split(units: list[Sentence], valid: float, test: float) -> dict[str, list[Sentence]]:
    """Cut the text into its first part, for training, its middle, for validation, and its end, for testing."""
    test_from = len(units) - round(len(units) * test)
    valid_from = test_from - round(len(units) * valid)
    parts = units[: max(valid_from, 0)], units[max(valid_from, 0) : test_from], units[test_from:]
    if not all(parts):
        sizes = ", ".join(str(len(part)) for part in parts)
        raise ValueError(f"the text is too short: its {len(units)} sentences make parts of {sizes}")
    return dict(zip(SPLITS, parts, strict=True))


def train_sentencepiece(units: list[Sentence], size: int, folder: Path) -> sentencepiece.SentencePieceProcessor:
    """Train a unigram model on ``units`` and keep it as sentencepiece.model in ``folder``."""
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([text for _, text in units]),
            model_prefix=str(folder / "sentencepiece"),
            vocab_size=size,
            max_sentence_length=1
            << 20,  # bytes; longer ones would be left out, and the default is a paragraph's length
            num_threads=1,  # more may sum in another order
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).rpartition("] ")[2].strip() or error  # the failed check stands in brackets before it
        raise ValueError(f"--sentencepiece {size}: {reason}") from None
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.model"))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Prepare raw text for language modelling with fairseq: writes dict.txt and "
        "{train,valid,test}.{bin,idx}, and with --sentencepiece the model. The files (UTF-8, as they are or .gz) are "
        "read as one text in the order given. Its beginning is the training part, its end the test part, the "
        "validation part lies between. Each sentence is tokenised by sacremoses (the Moses tokenizer, without its "
        "escapes) or by a sentencepiece model of the training part, and ends with </s>.",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="text files, UTF-8")
    add_destination_argument(parser)
    parser.add_argument(
        "--by",
        choices=("line", "paragraph"),
        default="line",
        help="what a sentence is, and what the text is split by: a line that is not blank, or the lines between two "
        "blank ones, joined by spaces (default: %(default)s)",
    )
    parser.add_argument(
        "--valid-fraction", type=fraction, default=0.1, metavar="F", help="of the sentences (default: %(default)s)"
    )
    parser.add_argument(
        "--test-fraction", type=fraction, default=0.1, metavar="F", help="of the sentences (default: %(default)s)"
    )
    parser.add_argument("--lower", action="store_true", help="lower-case the text first")
    parser.add_argument(
        "--language",
        type=language,
        default="en",
        metavar="CODE",
        help="language of sacremoses's rules, such as de (default: %(default)s)",
    )
    parser.add_argument(
        "--sentencepiece",
        type=positive,
        metavar="VOCAB_SIZE",
        help="tokenise with a sentencepiece model of this size instead; fairseq-interactive reads it with --bpe "
        "sentencepiece --sentencepiece-model DIR/sentencepiece.model",
    )
    parser.add_argument(
        "--min-count",
        type=positive,
        metavar="N",
        help="make <unk> of words that occur fewer than N times in the training part, and of those it lacks (default: "
        "2); 1 is no cut-off, words that the training part lacks are an error then",
    )
    parser.add_argument(
        "--vocab-size", type=positive, metavar="N", help="make <unk> of all but the N most frequent words"
    )
    args = parser.parse_args()
    if args.sentencepiece and (args.min_count or args.vocab_size):
        parser.error("--sentencepiece sets the vocabulary: it goes with neither --min-count nor --vocab-size")

    units = [unit for path in args.files for unit in read_units(path, args.by)]
    if args.lower:
        units = [Sentence(place, text.lower()) for place, text in units]
    parts = split(units, args.valid_fraction, args.test_fraction)
    with destination(args.dest) as folder:
        pieces: list[str] = []
        if args.sentencepiece:
            model = train_sentencepiece(parts["train"], args.sentencepiece, folder)
            pieces = [p for p in model.id_to_piece(list(range(len(model)))) if p not in ("<s>", "</s>", UNK)]

            def tokenize(text: str) -> list[str]:
                return model.id_to_piece(model.encode(text))
        else:
            moses = MosesTokenizer(args.language)

            def tokenize(text: str) -> list[str]:
                return moses.tokenize(text, escape=False)

        tokens = {
            name: [
                Sentence(place, tokenize(text))
                for place, text in tqdm(part, desc=f"tokenise {name}", unit=" sentences", leave=False, disable=None)
            ]
            for name, part in parts.items()
        }
        entries, counts = write_splits(
            folder, tokens, min_count=args.min_count or (1 if pieces else 2), max_words=args.vocab_size, symbols=pieces
        )
    for name in SPLITS:
        print(f"{name}: {counts[name]}")
    print(f"{args.dest}: dictionary of {entries:,} entries, <s>, <pad>, </s> and <unk> among them")

"""Prepare raw text for language modelling with fairseq: split it, tokenise it and cut off rare words."""

import argparse
import dataclasses
import os
import shutil
from pathlib import Path

import sentencepiece

from rnndrop_plugin.cli.arguments import SHARE, add_split_arguments, check_split_arguments, language, positive
from rnndrop_plugin.cli.destination import add_destination_argument, destination
from rnndrop_plugin.cli.splits import SPECIAL, UNK, Sentence, cut, describe_dictionary, write_splits
from rnndrop_plugin.data.text import lower_case, read_lines
from rnndrop_plugin.data.tokenization import FILE, Tokenization, text_sizes
from rnndrop_plugin.progress import progress_bar

MODEL = "sentencepiece.model"
FRACTION_NOTE = "with --dictionary the whole text is the split test, unless a share is given"


def read_units(path: Path, by: str) -> list[Sentence]:
    """The sentences of a file before tokenisation: its lines, or its paragraphs, whose lines are joined by spaces."""
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


def train_sentencepiece(units: list[Sentence], size: int, folder: Path) -> None:
    """Train a unigram model on ``units`` and save it as sentencepiece.model in ``folder``."""
    texts = [text for _, text in units]
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_prefix=str(folder / MODEL.removesuffix(".model")),
            vocab_size=size,
            max_sentence_length=max(10, *(len(text.encode()) for text in texts)),  # bytes; longer ones are left out
            num_threads=1,  # several threads may add up in another order
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).rpartition("] ")[2].strip() or error  # the failed check comes before it, in brackets
        raise ValueError(f"--sentencepiece {size}: {reason}") from None


def pieces_of(model: Path) -> list[str]:
    """The pieces of a sentencepiece model, except for the symbols that every dictionary has.

    Raises:
        ValueError: the file is not such a model.
    """
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{model}: not a sentencepiece model: {error}") from None
    return [p for p in processor.id_to_piece(list(range(len(processor)))) if p not in SPECIAL]


def size_or_model(text: str) -> int | Path:
    """An argparse type: the size of a vocabulary, or the file of a sentencepiece model."""
    if text.isdecimal():
        return positive(text)
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a size nor a file")
    return Path(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_split_arguments(parser, "one text to split, in one or more files", FRACTION_NOTE)
    add_destination_argument(parser)
    parser.add_argument(
        "--by",
        choices=("line", "paragraph"),
        default="line",
        help="what counts as a sentence, the unit in which the text is split: a line that is not blank, or the lines "
        "between two blank ones, joined by spaces (default: %(default)s)",
    )
    parser.add_argument("--lower", action="store_true", help="lower-case the text first")
    parser.add_argument(
        "--language",
        type=language,
        metavar="CODE",
        help="language of sacremoses's rules, such as de (default: en)",
    )
    parser.add_argument(
        "--sentencepiece",
        type=size_or_model,
        metavar="VOCAB_SIZE_OR_FILE",
        help="tokenise with a sentencepiece model instead: train one of this size on the training part, or use an "
        "existing one; it is saved as DIR/sentencepiece.model",
    )
    parser.add_argument(
        "--dictionary",
        type=Path,
        metavar="DIR_OR_FILE",
        help="prepare a text for a model that is already trained: use the dictionary of its data folder, or a "
        "dict.txt, and cut the text as the folder's tokenizer.json says. Words that the dictionary lacks become <unk>",
    )
    parser.add_argument(
        "--min-count",
        type=positive,
        metavar="N",
        help="replace words that occur fewer than N times in the training part, or not at all, by <unk> (default: 2); "
        "with 1 there is no cut-off, and words that the training part lacks are an error",
    )
    parser.add_argument(
        "--vocab-size", type=positive, metavar="N", help="replace all but the N most frequent words by <unk>"
    )


def read_from(path: Path, folder: Path) -> bool:
    """Whether ``path`` is ``folder`` or in it, at any depth."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, list[Path]]:
    """The files of each split that has its own. Ends the command if flags exclude each other or one is missing."""
    named = check_split_arguments(parser, args)
    if named and "train" not in named and not args.dictionary:
        parser.error("--train is needed to make a dictionary, unless --dictionary names one")
    if args.dictionary and args.dest.is_dir() and read_from(args.dictionary, args.dest):
        parser.error("--dest is the folder of --dictionary, whose training text would be lost")
    if args.dictionary and (args.min_count or args.vocab_size):
        parser.error("--dictionary sets the vocabulary: it goes with neither --min-count nor --vocab-size")
    if args.sentencepiece and args.language:
        parser.error("--language has rules for words, and --sentencepiece cuts the text without them")
    if args.sentencepiece and (args.min_count or args.vocab_size):
        parser.error("--sentencepiece sets the vocabulary: it goes with neither --min-count nor --vocab-size")
    return named


def read_parts(args: argparse.Namespace, named: dict[str, list[Path]]) -> dict[str, list[Sentence]]:
    """The sentences of each split before tokenisation; ``named`` has the files of splits that have their own."""

    def read(paths: list[Path]) -> list[Sentence]:
        units = [unit for path in paths for unit in read_units(path, args.by)]
        return [Sentence(place, lower_case(text)) for place, text in units] if args.lower else units

    if named:
        return {name: read(paths) for name, paths in named.items()}
    units = read(args.files)
    if args.dictionary and not args.valid_fraction and not args.test_fraction:
        return {"test": units}
    return cut(units, args.valid_fraction or SHARE, args.test_fraction or SHARE)


def dictionary_folder(path: Path) -> Path:
    """The data folder, given its path or that of its dict.txt; ValueError for any other path."""
    if path.name == "dict.txt":
        return path.parent
    if path.is_dir():
        return path
    raise ValueError(f"{path}: neither a data folder nor a file dict.txt")


def tokenization_of(args: argparse.Namespace) -> Tokenization:
    """How to cut the text, according to the flags or the folder of --dictionary."""
    folder = dictionary_folder(args.dictionary) if args.dictionary else None
    kept = Tokenization.load(folder) if folder else None
    if kept is None:
        if args.sentencepiece:
            return Tokenization(lower=args.lower, bpe="sentencepiece", model=MODEL)
        return Tokenization("moses", args.language or "en", args.lower)
    if args.language or args.lower or args.sentencepiece:
        raise ValueError(
            f"{folder / FILE} says how the text is cut: --language, --lower and --sentencepiece do not go with it"
        )
    return kept


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Prepare raw text for language modelling with fairseq: writes dict.txt, the splits as "
        "{train,valid,test}.{bin,idx}, tokenizer.json, which says how the text was cut, and with --sentencepiece the "
        "model. The files (UTF-8, may be .gz) are read as one text in the given order. Its beginning becomes the "
        "training part, its end the test part, and what is between them the validation part; or each split has files "
        "of its own. Each sentence is tokenised by sacremoses (the Moses tokenizer, without its escapes) or by a "
        "sentencepiece model, and </s> is added to it.",
    )
    add_arguments(parser)
    args = parser.parse_args()
    parts = read_parts(args, check_arguments(parser, args))
    tokenization = tokenization_of(args)
    with destination(args.dest) as folder:
        dictionary = None
        if args.dictionary:
            from rnndrop_plugin.data.indexed import load_dictionary  # fairseq takes seconds to import

            dictionary = load_dictionary(str(dictionary_folder(args.dictionary)))
        pieces: list[str] = []
        known: set[str] = set()
        if tokenization.bpe:
            model = folder / MODEL
            if isinstance(args.sentencepiece, int):
                if "train" not in parts:
                    raise ValueError("--sentencepiece with a size needs --train")
                train_sentencepiece(parts["train"], args.sentencepiece, folder)
            else:
                model = args.sentencepiece or tokenization.folder / tokenization.model
            pieces = pieces_of(model)
            if model != folder / MODEL:
                shutil.copyfile(model, folder / MODEL)
            known = set(pieces)  # other tokens are characters that the model has not seen
            tokenization = dataclasses.replace(tokenization, model=MODEL)
        sizes = {name: text_sizes(text for _, text in part) for name, part in parts.items()}
        tokenization = dataclasses.replace(tokenization, splits=sizes, folder=folder)

        def tokenize(text: str) -> list[str]:
            tokens = tokenization.tokenize(text)
            return [token if token in known else UNK for token in tokens] if known else tokens

        tokens = {
            name: [
                Sentence(place, tokenize(text))
                for place, text in progress_bar(part, desc=f"tokenise {name}", unit=" sentences")
            ]
            for name, part in parts.items()
        }
        entries, counts = write_splits(
            folder,
            tokens,
            min_count=args.min_count or (1 if pieces else 2),
            max_words=args.vocab_size,
            symbols=pieces,
            dictionary=dictionary,
        )
        tokenization.save(folder)
    for name, size in sizes.items():
        print(f"{name}: {counts[name]}; {size['words']:,} words between blanks, {size['characters']:,} characters")
    print(describe_dictionary(args.dest, entries))

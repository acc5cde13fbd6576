"""Classify texts with a model that fairseq-train has trained for the task rnndrop_classification."""

import argparse
import dataclasses
import json

from rnndrop_plugin.cli.trained_model import add_arguments, import_user_dir, write
from rnndrop_plugin.data.text import read_lines
from rnndrop_plugin.errors import at
from rnndrop_plugin.progress import progress_bar

DECIMALS = 4  # of a probability; more of them may depend on the batch


def as_json(text: str, probabilities: dict[str, float]) -> str:
    """A text, its label and the probabilities of all labels in one line of JSON."""
    label = max(probabilities, key=probabilities.get) if probabilities else None
    rounded = {name: round(probability, DECIMALS) for name, probability in probabilities.items()}
    return json.dumps({"text": text, "label": label, "probabilities": rounded}, ensure_ascii=False) + "\n"


def as_columns(text: str, probabilities: dict[str, float]) -> str:
    """The label, its probability and the text, separated by tabs; a blank line if there is no label."""
    if not probabilities:
        return "\n"
    label = max(probabilities, key=probabilities.get)
    return f"{label}\t{probabilities[label]:.{DECIMALS}f}\t{text}\n"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Classify texts, one per line in UTF-8, with a model that fairseq-train has trained for the task "
        "rnndrop_classification. For each text it writes a line with the label, the label's probability and the text, "
        "separated by tabs, to standard output, or a blank line if the text has no words. The model reads words that "
        "its dictionary lacks as <unk>.",
    )
    add_arguments(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        help="write a line of JSON for each text instead: the text, its label (null for a text without words) and the "
        "probabilities of all labels (none for such a text)",
    )
    parser.add_argument(
        "--tokenize",
        choices=("tweets", "blanks"),
        help="how to cut a text into words, which must be the way in which the training data were cut: tweets, as "
        "`rnndrop prepare semeval` does, with user names and links replaced; or blanks, only at blanks, for data of "
        "temporal-order and texts that are already cut (default: as the data folder's tokenizer.json says, and tweets "
        "if there is none)",
    )
    args = parser.parse_args()

    places, texts = [], []
    for path in args.files:
        lines = read_lines(path)
        texts += [line.strip() for line in lines]
        places += [f"{path}, line {number}" for number in range(1, len(lines) + 1)]

    from rnndrop_plugin.tasks.pretrained import PretrainedClassifier  # takes seconds, so read the input before it

    import_user_dir(args.user_dir)
    classifier = PretrainedClassifier.load(args.path, data=args.data)
    tokenization = classifier.tokenization
    if args.tokenize:
        tokenizer = "tweets" if args.tokenize == "tweets" else None
        tokenization = dataclasses.replace(tokenization, tokenizer=tokenizer, bpe=None)
    words = []
    for place, text in zip(places, progress_bar(texts, desc="tokenise", unit=" lines"), strict=True):
        with at(place):
            words.append(tokenization.tokenize(text))
    probabilities = classifier.predict(words, args.batch_size)
    write("".join(map(as_json if args.json else as_columns, texts, probabilities)))

"""Tag the words of a text with a model that fairseq-train has trained for the task rnndrop_tagging."""

import argparse
import dataclasses
import json
import re
import sys
from typing import TYPE_CHECKING

from rnndrop_plugin.cli.arguments import add_column_arguments, language
from rnndrop_plugin.cli.trained_model import add_arguments, import_user_dir, write
from rnndrop_plugin.data.columns import read_sentences
from rnndrop_plugin.data.entity_tags import Tagged, check_tag, tag_scheme, to_iob2
from rnndrop_plugin.data.text import read_lines
from rnndrop_plugin.progress import progress_bar

if TYPE_CHECKING:
    from rnndrop_plugin.data.spans import SpanTags


def as_json(words: list[str], tags: list[str], span_tags: "SpanTags | None") -> str:
    """A sentence, its tags and, if these mark spans, its entities in one line of JSON."""
    line = {"words": words, "tags": tags}
    if span_tags is not None:
        line["entities"] = [
            {"type": name, "start": first, "end": last + 1, "text": " ".join(words[first : last + 1])}
            for name, first, last in sorted(span_tags.spans(tags), key=lambda span: span[1])
        ]
    return json.dumps(line, ensure_ascii=False) + "\n"


def as_columns(*columns: list[str]) -> str:
    """A sentence with one word per line, and a blank line at its end."""
    return "".join(f"{' '.join(row)}\n" for row in zip(*columns, strict=True)) + "\n"


def true_tags(sentences: list[Tagged], classes: list[str], span_tags: "SpanTags | None") -> list[list[str]]:
    """The tags of each sentence, in IOB2 if the model's predictions are: if its ``classes`` are IOB2 or IOBES.

    Raises:
        ValueError: the tags are of no scheme, or of several.
    """
    iobes = span_tags is not None and span_tags.iobes
    if not iobes and not all(re.fullmatch(r"O|[BI]-\S+", name) for name in classes):
        return [sentence.tags for sentence in sentences]
    for sentence in sentences:
        for i, own in enumerate(sentence.tags):
            check_tag(sentence.place(i), own)
    scheme = tag_scheme(sentences)
    return [to_iob2(sentence, scheme, "these files").tags for sentence in sentences]


def accuracy(gold: list[list[str]], predicted: list[list[str]]) -> tuple[int, float]:
    """How many words there are, and the percentage of them whose tag is right."""
    from rnndrop_plugin.criterions.scores import ratio

    pairs = [pair for tags in zip(gold, predicted, strict=True) for pair in zip(*tags, strict=True)]
    return len(pairs), ratio(sum(tag == own for tag, own in pairs), len(pairs))


def tag_scores(gold: list[list[str]], predicted: list[list[str]], classes: list[str]) -> str:
    """Accuracy and mean F1 of tags that mark no spans. True tags that the model does not have count as errors."""
    import torch

    from rnndrop_plugin.criterions.scores import count_classes, mean_f1

    numbers = {tag: i for i, tag in enumerate(dict.fromkeys([*classes, *(tag for tags in gold for tag in tags)]))}
    own, true = (torch.tensor([numbers[tag] for tags in some for tag in tags]) for some in (predicted, gold))
    words, percent = accuracy(gold, predicted)
    mean = mean_f1(count_classes(own, true, len(numbers)))
    return f"processed {words} tokens.\naccuracy: {percent:6.2f}%; mean F1 of the tags: {mean:6.2f}"


def conlleval(gold: list[list[str]], predicted: list[list[str]], span_tags: "SpanTags") -> str:
    """The table that conlleval, the script of the CoNLL tasks, prints for these tags.

    Args:
        gold, predicted: the tags of each sentence.
        span_tags: reads the spans that the tags mark.
    """
    from rnndrop_plugin.criterions.scores import ratio

    correct, found, true = span_tags.count(zip(predicted, gold, strict=True))

    def scores(correct: int, found: int, true: int) -> str:
        precision, recall, f1 = ratio(correct, found), ratio(correct, true), ratio(2 * correct, found + true)
        return f"precision: {precision:6.2f}%; recall: {recall:6.2f}%; FB1: {f1:6.2f}"

    words, percent = accuracy(gold, predicted)
    lines = [
        f"processed {words} tokens with {true.total()} phrases; "
        f"found: {found.total()} phrases; correct: {correct.total()}.",
        f"accuracy: {percent:6.2f}%; {scores(correct.total(), found.total(), true.total())}",
    ]
    for name in sorted(true | found):
        lines.append(f"{name:>17}: {scores(correct[name], found[name], true[name])}  {found[name]}")
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Tag the words of a text with a model that fairseq-train has trained for the task rnndrop_tagging. "
        "The text has one sentence per line, which is cut into words as the training data were, or by sacremoses (the "
        "Moses tokenizer). Files of columns, whose words are already cut, are read with --conll. Writes a line with "
        "each word and its tag, and a blank line after each sentence, in UTF-8, to standard output. For a line without "
        "words it writes only the blank line. The model reads words that its dictionary lacks as <unk>.",
    )
    add_arguments(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        help="write a line of JSON for each sentence: its words, their tags and, if the tags mark entities, also these "
        "with type, text, start and end; words[start:end] are an entity's words",
    )
    parser.add_argument(
        "--language",
        type=language,
        metavar="CODE",
        help="cut the text by sacremoses with the rules of this language, such as de (default: as the data folder's "
        "tokenizer.json says, and en if there is none)",
    )
    parser.add_argument(
        "--conll",
        action="store_true",
        help="read files of columns as `rnndrop prepare conll` does: one word per line, a blank line after each "
        "sentence; lines that begin with -DOCSTART- are left out",
    )
    parser.add_argument(
        "--gold",
        action="store_true",
        help="with --conll: the files also have the true tags; tags of entities may be IOB1, IOB2 or IOBES. Writes "
        "three columns, which conlleval reads: the word, the true tag (of entities in IOB2 if the model's are) and the "
        "model's. To standard error it writes conlleval's table or, for tags that mark no entities, their accuracy and "
        "mean F1",
    )
    add_column_arguments(parser)
    args = parser.parse_args()
    if args.gold and (args.json or not args.conll):
        parser.error("--gold goes with --conll, and not with --json")
    if not args.conll and (args.word_column, args.separator) != (0, None) or not args.gold and args.tag_column != -1:
        parser.error("--word-column and --separator go with --conll, --tag-column with --gold")
    if args.conll and args.language:
        parser.error("--language does not go with --conll, whose words are cut already")

    if args.conll:
        tag_column = args.tag_column if args.gold else None
        sentences = [
            sentence
            for path in args.files
            for sentence in read_sentences(
                path, args.encoding, args.separator, args.word_column, tag_column, any_tags=True
            )
        ]
        words = [sentence.words for sentence in sentences]
    else:
        lines = [line for path in args.files for line in read_lines(path, args.encoding)]

    from rnndrop_plugin.tasks.pretrained import PretrainedTagger  # takes seconds, so read the input before it

    import_user_dir(args.user_dir)
    tagger = PretrainedTagger.load(args.path, data=args.data)
    if not args.conll:
        tokenization = tagger.tokenization
        if args.language:
            tokenization = dataclasses.replace(tokenization, tokenizer="moses", language=args.language, bpe=None)
        lines = progress_bar(lines, desc="tokenise", unit=" lines")
        words = [tokenization.tokenize(line) for line in lines]
    classes, span_tags = tagger.task.classes, tagger.task.span_tags
    if args.gold:
        gold = true_tags(sentences, classes, span_tags)
    tags = tagger.predict(words, args.batch_size)
    if args.json:
        write("".join(as_json(*pair, span_tags) for pair in zip(words, tags, strict=True)))
    else:
        write("".join(map(as_columns, words, *([gold] if args.gold else []), tags)))
    if args.gold:
        scores = tag_scores(gold, tags, classes) if span_tags is None else conlleval(gold, tags, span_tags)
        print(scores, file=sys.stderr)

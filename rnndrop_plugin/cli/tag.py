"""Tag the words of a text by a model that fairseq-train made for the task rnndrop_tagging."""

import argparse
import json
import sys

from sacremoses import MosesTokenizer
from tqdm import tqdm

from rnndrop_plugin.cli.arguments import add_column_arguments, language
from rnndrop_plugin.cli.prediction import add_arguments, import_user_dir, write
from rnndrop_plugin.data.columns import read_sentences, tag_scheme, to_iob2
from rnndrop_plugin.data.text import read_lines


def as_json(words: list[str], tags: list[str]) -> str:
    """A sentence, its tags and its entities in one line of JSON."""
    from rnndrop_plugin.criterions.tagging import entities

    found = [
        {"type": name, "start": first, "end": last + 1, "text": " ".join(words[first : last + 1])}
        for name, first, last in sorted(entities(tags), key=lambda entity: entity[1])
    ]
    return json.dumps({"words": words, "tags": tags, "entities": found}, ensure_ascii=False) + "\n"


def as_columns(*columns: list[str]) -> str:
    """A sentence with a word a line, and a blank line at its end."""
    return "".join(f"{' '.join(row)}\n" for row in zip(*columns, strict=True)) + "\n"


def conlleval(gold: list[list[str]], predicted: list[list[str]]) -> str:
    """The table that the CoNLL tasks' conlleval prints of sentences' tags.

    Args:
        gold, predicted: the tags of each sentence, gold ones in IOB2.
    """
    from rnndrop_plugin.criterions.scores import ratio
    from rnndrop_plugin.criterions.tagging import count_entities

    correct, found, there = count_entities(zip(predicted, gold, strict=True))

    def scores(correct: int, found: int, there: int) -> str:
        precision, recall, f1 = ratio(correct, found), ratio(correct, there), ratio(2 * correct, found + there)
        return f"precision: {precision:6.2f}%; recall: {recall:6.2f}%; FB1: {f1:6.2f}"

    pairs = [pair for tags in zip(gold, predicted, strict=True) for pair in zip(*tags, strict=True)]
    accuracy = ratio(sum(tag == own for tag, own in pairs), len(pairs))
    lines = [
        f"processed {len(pairs)} tokens with {there.total()} phrases; "
        f"found: {found.total()} phrases; correct: {correct.total()}.",
        f"accuracy: {accuracy:6.2f}%; {scores(correct.total(), found.total(), there.total())}",
    ]
    for name in sorted(there | found):
        lines.append(f"{name:>17}: {scores(correct[name], found[name], there[name])}  {found[name]}")
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Tag the words of a text by a model that fairseq-train has made for the task rnndrop_tagging. The "
        "text has one sentence a line, which sacremoses (the Moses tokenizer, as in `rnndrop prepare text`) cuts into "
        "words; files of columns, whose words are cut already, are read with --conll. Writes lines with a word and its "
        "tag and a blank line after each sentence, in UTF-8, to standard output; of a line without words the blank "
        "line alone. Words that the model's dictionary lacks are <unk> to it.",
    )
    add_arguments(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        help="write a line of JSON for each sentence: its words, their tags, and its entities with type and text, and "
        "with start and end such that words[start:end] are their words",
    )
    parser.add_argument(
        "--language",
        type=language,
        default="en",
        metavar="CODE",
        help="language of sacremoses's rules, such as de (default: %(default)s)",
    )
    parser.add_argument(
        "--conll",
        action="store_true",
        help="read files of columns as `rnndrop prepare conll` does: a word a line, a blank line after each sentence, "
        "lines that begin with -DOCSTART- left out",
    )
    parser.add_argument(
        "--gold",
        action="store_true",
        help="with --conll: the files have the true tags, too, in IOB1, IOB2 or IOBES. Writes three columns, the word, "
        "the true tag in IOB2 and the model's, as conlleval reads them, and conlleval's table to standard error",
    )
    add_column_arguments(parser)
    args = parser.parse_args()
    if args.gold and (args.json or not args.conll):
        parser.error("--gold goes with --conll, and not with --json")
    if not args.conll and (args.word_column, args.separator) != (0, None) or not args.gold and args.tag_column != -1:
        parser.error("--word-column and --separator go with --conll, --tag-column with --gold")

    if args.conll:
        tag_column = args.tag_column if args.gold else None
        sentences = [
            sentence
            for path in args.files
            for sentence in read_sentences(path, args.encoding, args.separator, args.word_column, tag_column)
        ]
        words = [sentence.words for sentence in sentences]
    else:
        lines = [line for path in args.files for line in read_lines(path, args.encoding)]
        moses = MosesTokenizer(args.language)
        lines = tqdm(lines, desc="tokenise", unit=" lines", leave=False, disable=None)
        words = [moses.tokenize(line, escape=False) for line in lines]
    if args.gold:
        scheme = tag_scheme(sentences)
        gold = [to_iob2(sentence, scheme, "these files").tags for sentence in sentences]

    from rnndrop_plugin.tasks.pretrained import PretrainedTagger  # takes seconds: not before the input has been read

    import_user_dir(args.user_dir)
    tagger = PretrainedTagger.load(args.path, data=args.data)
    tags = tagger.predict(words, args.batch_size)
    columns = (words, gold, tags) if args.gold else (words, tags)
    write("".join(map(as_json if args.json else as_columns, *columns)))
    if args.gold:
        print(conlleval(gold, tags), file=sys.stderr)

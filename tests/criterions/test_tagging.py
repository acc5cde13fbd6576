from types import SimpleNamespace

import pytest
import torch
from fairseq.logging import metrics

from rnndrop_plugin.criterions.tagging import RnndropTagging, entities, entity_types
from rnndrop_plugin.data.sequence_dataset import NO_TARGET

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def criterion(sentence_avg: bool = False, tags=TAGS) -> RnndropTagging:
    return RnndropTagging(SimpleNamespace(classes=tags), sentence_avg)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", set()),
        ("B-PER I-PER O", {("PER", 0, 1)}),
        ("O I-PER I-PER", {("PER", 1, 2)}),  # I- after O begins one
        ("I-PER", {("PER", 0, 0)}),
        ("B-PER B-PER", {("PER", 0, 0), ("PER", 1, 1)}),  # neighbours of one type
        ("I-PER B-PER I-PER", {("PER", 0, 0), ("PER", 1, 2)}),
        ("B-PER I-LOC", {("PER", 0, 0), ("LOC", 1, 1)}),  # another type begins another one
        ("I-PER I-LOC I-LOC O B-LOC", {("PER", 0, 0), ("LOC", 1, 2), ("LOC", 4, 4)}),
    ],
)
def test_entities_are_those_of_conlleval(tags, expected):
    assert entities(tags.split()) == expected


def test_types_come_from_the_tags():
    assert entity_types(["O", "B-PER", "I-PER", "I-MISC", "S-my-type"]) == ["MISC", "PER", "my-type"]


def indices(*rows: str) -> torch.Tensor:
    """Tags as classes, padded."""
    rows = [[TAGS.index(tag) for tag in row.split()] for row in rows]
    longest = max(map(len, rows))
    return torch.tensor([row + [NO_TARGET] * (longest - len(row)) for row in rows])


def test_counts_of_a_batch():
    gold = indices("B-PER I-PER O B-LOC", "B-LOC O")
    lengths = torch.tensor([4, 2])
    # a wrong end, a right LOC; a right LOC, and past the sentence's end what does not count
    predicted = torch.where(gold == NO_TARGET, TAGS.index("B-PER"), indices("B-PER O O B-LOC", "B-LOC O"))
    counts = criterion().count(predicted, gold, lengths)
    assert counts.tolist() == [[2, 2, 2], [0, 1, 1]]  # LOC, PER: correct, predicted, there


class Model(torch.nn.Module):
    """Gives the logits it is made with."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, src_lengths):
        return self.logits

    def loss(self, logits, target, lengths):
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), target.flatten(), ignore_index=NO_TARGET, reduction="sum"
        )

    def decode(self, logits, lengths):
        return logits.argmax(2)


def sample(target, lengths):
    return {
        "target": target,
        "net_input": {"src_lengths": lengths},
        "ntokens": int(lengths.sum()),
        "nsentences": len(lengths),
    }


@pytest.mark.parametrize("sentence_avg", [False, True])
def test_scores_over_batches_are_those_of_the_whole(sentence_avg):
    """Sums are added before they are divided: not the mean over batches."""
    rows = ["B-PER I-PER O B-LOC", "B-LOC O", "O O I-PER", "B-LOC I-LOC B-LOC", "O"]
    gold, lengths = indices(*rows), torch.tensor([len(row.split()) for row in rows])
    logits = torch.randn(*gold.shape, len(TAGS))
    logits[gold != NO_TARGET] += 1.5 * torch.nn.functional.one_hot(gold[gold != NO_TARGET], len(TAGS))

    def log(parts):
        one = criterion(sentence_avg)
        logs = []
        with metrics.aggregate(new_root=True) as aggregate:
            for part in parts:
                model = Model(logits[part]).eval()
                loss, sample_size, log = one(model, sample(gold[part], lengths[part]))
                assert sample_size == (len(lengths[part]) if sentence_avg else lengths[part].sum())
                logs.append(log)
            one.reduce_metrics(logs)
            one.log_scores(logs)
        return aggregate.get_smoothed_values()

    whole, parts = log([slice(None)]), log([slice(0, 1), slice(1, 4), slice(4, 5)])
    assert whole == pytest.approx(parts)
    found = [entities([TAGS[i] for i in row[:n]]) for row, n in zip(logits.argmax(2).tolist(), lengths, strict=True)]
    there = [entities(row.split()) for row in rows]
    correct = sum(len(a & b) for a, b in zip(found, there, strict=True))
    assert 0 < correct < sum(map(len, there))
    assert whole["precision"] == round(100 * correct / sum(map(len, found)), 2)
    assert whole["recall"] == round(100 * correct / sum(map(len, there)), 2)
    assert whole["f1"] == round(200 * correct / (sum(map(len, found)) + sum(map(len, there))), 2)
    assert whole["accuracy"] == pytest.approx(100 * float((logits.argmax(2) == gold).sum() / lengths.sum()), abs=0.01)
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), gold, ignore_index=NO_TARGET, reduction="sum")
    size = len(rows) if sentence_avg else int(lengths.sum())
    assert whole["loss"] == pytest.approx(float(losses) / size / 0.6931472, abs=1e-4)


def test_entities_are_counted_in_evaluation_alone():
    gold, lengths = indices("B-PER O"), torch.tensor([2])
    model = Model(torch.randn(1, 2, len(TAGS)))
    assert "counts" not in criterion()(model.train(), sample(gold, lengths))[2]
    assert "counts" in criterion()(model.eval(), sample(gold, lengths))[2]


def test_nothing_found_is_a_score_of_0():
    one = criterion()
    with metrics.aggregate(new_root=True) as aggregate:
        one.log_scores([{"counts": torch.zeros(2, 3)}])
    assert aggregate.get_smoothed_values() == {"precision": 0, "recall": 0, "f1": 0, "f1_LOC": 0, "f1_PER": 0}

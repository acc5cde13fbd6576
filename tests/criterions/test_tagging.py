from types import SimpleNamespace

import pytest
import torch
from fairseq.logging import metrics
from sklearn.metrics import f1_score

from rnndrop_plugin.criterions.tagging import RnndropTagging
from rnndrop_plugin.data.sequence_dataset import NO_TARGET
from rnndrop_plugin.data.spans import SpanTags

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def criterion(sentence_avg: bool = False, tags=TAGS) -> RnndropTagging:
    return RnndropTagging(SimpleNamespace(classes=tags, span_tags=SpanTags(tags)), sentence_avg)


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
    found = [
        SpanTags(TAGS).spans([TAGS[i] for i in row[:n]])
        for row, n in zip(logits.argmax(2).tolist(), lengths, strict=True)
    ]
    there = [SpanTags(TAGS).spans(row.split()) for row in rows]
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


def test_the_tags_of_an_evaluation_are_those_that_the_model_decodes():
    gold, lengths = indices("B-PER I-PER"), torch.tensor([2])
    model = Model(torch.zeros(1, 2, len(TAGS)))  # the largest logit is that of O
    model.decode = lambda logits, lengths: gold
    assert criterion()(model.eval(), sample(gold, lengths))[2]["correct"] == 2
    assert criterion()(model.train(), sample(gold, lengths))[2]["correct"] == 0


def test_spans_without_a_type_have_one_score():
    one = criterion(tags=["O", "B", "I"])
    with metrics.aggregate(new_root=True) as aggregate:
        one.log_scores([{"counts": torch.tensor([[1, 2, 2]])}])
    assert aggregate.get_smoothed_values() == {"precision": 50, "recall": 50, "f1": 50}


def test_tags_that_mark_no_spans_are_scored_as_classes_are():
    """With parts of speech and the like: the mean F1 of the tags, those of scikit-learn's default."""
    tags = ["NOUN", "VERB", "DET", "X"]  # X is neither there nor predicted
    one = RnndropTagging(SimpleNamespace(classes=tags, span_tags=None), False)
    gold = torch.randint(3, (4, 7))
    lengths = torch.tensor([7, 5, 7, 2])
    gold[torch.arange(7) >= lengths.unsqueeze(1)] = NO_TARGET
    logits = torch.randn(4, 7, 4) - torch.tensor([0, 0, 0, torch.inf])
    logs = [
        one(Model(logits[part]).eval(), sample(gold[part], lengths[part]))[2] for part in (slice(0, 1), slice(1, 4))
    ]
    with metrics.aggregate(new_root=True) as aggregate:
        one.reduce_metrics(logs)
        one.log_scores(logs)
    values = aggregate.get_smoothed_values()
    inside = gold != NO_TARGET
    expected = f1_score(gold[inside], logits.argmax(2)[inside], average="macro")
    assert values["f1"] == pytest.approx(100 * float(expected), abs=0.01) and 10 < values["f1"] < 90
    assert not {"precision", "recall"} & values.keys()


def test_nothing_found_is_a_score_of_0():
    one = criterion()
    with metrics.aggregate(new_root=True) as aggregate:
        one.log_scores([{"counts": torch.zeros(2, 3)}])
    assert aggregate.get_smoothed_values() == {"precision": 0, "recall": 0, "f1": 0, "f1_LOC": 0, "f1_PER": 0}

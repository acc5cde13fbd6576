from types import SimpleNamespace

import pytest
import torch
from fairseq.logging import metrics
from sklearn.metrics import accuracy_score, f1_score

from rnndrop_plugin.criterions.classification import RnndropClassification
from rnndrop_plugin.errors import InputError

LABELS = ["positive", "negative", "neutral"]


def criterion(f1_classes=None) -> RnndropClassification:
    return RnndropClassification(SimpleNamespace(classes=LABELS), f1_classes)


def values(one, logits, target, sizes) -> dict:
    """What is logged over batches of ``sizes``."""
    logs = []
    for a, b in zip(logits.split(sizes), target.split(sizes), strict=True):
        net_input = {"src_tokens": a}
        sample = {"net_input": net_input, "target": b, "ntokens": 5 * len(b), "nsentences": len(b)}
        loss, sample_size, log = one(lambda src_tokens: src_tokens, sample)
        assert sample_size == len(b)
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(a, b, reduction="sum"))
        logs.append(log)
    with metrics.aggregate(new_root=True) as aggregate:
        one.reduce_metrics(logs)
        one.log_scores(logs)
    return aggregate.get_smoothed_values()


@pytest.mark.parametrize("sizes", [[60], [1, 20, 39]])
def test_scores_are_those_of_scikit_learn(sizes):
    target = torch.randint(3, (60,))
    logits = torch.randn(60, 3) + torch.nn.functional.one_hot(target, 3)
    predicted = logits.argmax(1)
    by_label = 100 * f1_score(target, predicted, average=None)
    found = values(criterion("positive,negative"), logits, target, sizes)
    assert found["accuracy"] == pytest.approx(100 * accuracy_score(target, predicted), abs=0.01)
    assert [found[f"f1_{label}"] for label in LABELS] == pytest.approx(by_label.tolist(), abs=0.01)
    assert found["f1"] == pytest.approx(by_label[:2].mean(), abs=0.01)
    assert values(criterion(), logits, target, sizes)["f1"] == pytest.approx(by_label.mean(), abs=0.01)
    loss = torch.nn.functional.cross_entropy(logits, target) / torch.tensor(2.0).log()
    assert found["loss"] == pytest.approx(float(loss), abs=1e-4)


def test_a_label_that_is_never_there_scores_0():
    target = torch.zeros(5, dtype=torch.long)
    found = values(criterion(), torch.tensor([[1.0, 0, 0]] * 5), target, [5])
    assert (found["f1_positive"], found["f1_negative"], found["f1_neutral"]) == (100, 0, 0)
    assert found["f1"] == 100  # as scikit-learn has it, a label that is neither there nor predicted is not in the mean
    one = criterion("positive,negative")
    assert values(one, torch.tensor([[1.0, 0, 0]] * 5), target, [5])["f1"] == 50  # unless it is asked for


def test_unknown_labels_are_refused():
    with pytest.raises(InputError, match="--f1-classes: 'good' is not one of the labels, positive, negative, neutral"):
        criterion("positive,good")


def test_absent_labels_are_left_out_of_the_softmax_of_training_alone():
    logits = torch.randn(20, 3, requires_grad=True)
    target = torch.randint(2, (20,))  # none is neutral
    sample = {"net_input": {"src_tokens": logits}, "target": target, "ntokens": 20, "nsentences": 20}
    one = RnndropClassification(SimpleNamespace(classes=LABELS, absent_classes=[2]), ignore_absent_classes=True)
    loss, _, log = one(lambda src_tokens: src_tokens, sample)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits[:, :2], target, reduction="sum"))
    loss.backward()
    assert logits.grad[:, 2].eq(0).all() and logits.grad[:, :2].ne(0).all()
    assert log["counts"][2].tolist() == [0, 0, 0]
    one.eval()
    loss, _, _ = one(lambda src_tokens: src_tokens, sample)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, target, reduction="sum"))


def test_a_class_that_is_named_twice_counts_once():
    assert criterion(f"{LABELS[0]},{LABELS[1]},{LABELS[0]}").chosen == [0, 1]

import itertools

import pytest
import torch

from rnndrop_plugin.ops import crf_decode, crf_nll


def random_crf(batch: int, time: int, tags: int):
    emissions = torch.randn(batch, time, tags, dtype=torch.float64)
    transitions, start, end = (torch.randn(*size, dtype=torch.float64) for size in ((tags, tags), (tags,), (tags,)))
    return emissions, transitions, start, end


def all_scores(emissions, transitions, start, end) -> dict[tuple[int, ...], torch.Tensor]:
    """The score of every path through the steps of one sequence, ``(time, tags)``."""
    time, tags = emissions.shape
    scores = {}
    for path in itertools.product(range(tags), repeat=time):
        score = start[path[0]] + end[path[-1]] + sum(emissions[t, tag] for t, tag in enumerate(path))
        scores[path] = score + sum(transitions[a, b] for a, b in itertools.pairwise(path))
    return scores


@pytest.mark.parametrize(("time", "tags"), [(1, 1), (1, 4), (4, 3), (5, 2)])
def test_likelihood_and_best_path_are_those_of_all_paths(time, tags):
    lengths = torch.tensor([time, max(time - 2, 1), 1])
    crf = random_crf(3, time, tags)
    gold = torch.randint(tags, (3, time))
    nll, best = crf_nll(*crf, gold, lengths), crf_decode(*crf, lengths)
    for i, length in enumerate(lengths.tolist()):
        scores = all_scores(crf[0][i, :length], *crf[1:])
        total = torch.logsumexp(torch.stack(list(scores.values())), dim=0)
        torch.testing.assert_close(nll[i], total - scores[tuple(gold[i, :length].tolist())])
        assert tuple(best[i, :length].tolist()) == max(scores, key=scores.get)


def test_gradients():
    crf = [tensor.requires_grad_() for tensor in random_crf(2, 4, 3)]
    gold, lengths = torch.randint(3, (2, 4)), torch.tensor([4, 2])
    assert torch.autograd.gradcheck(lambda *crf: crf_nll(*crf, gold, lengths), crf)


def test_what_stands_past_the_end_does_not_matter():
    emissions, *rest = random_crf(2, 5, 3)
    lengths = torch.tensor([5, 3])
    gold = torch.randint(3, (2, 5))
    other_emissions, other_gold = emissions.clone(), gold.clone()
    other_emissions[1, 3:] = 100.0
    other_gold[1, 3:] = -100  # as the padding of a batch
    torch.testing.assert_close(
        crf_nll(emissions, *rest, gold, lengths), crf_nll(other_emissions, *rest, other_gold, lengths)
    )
    paths = [crf_decode(e, *rest, lengths) for e in (emissions, other_emissions)]
    assert torch.equal(paths[0][1, :3], paths[1][1, :3])


def test_without_transitions_each_step_is_its_own():
    emissions, transitions, start, end = random_crf(2, 6, 4)
    none = (torch.zeros_like(transitions), torch.zeros_like(start), torch.zeros_like(end))
    gold, lengths = torch.randint(4, (2, 6)), torch.tensor([6, 6])
    softmax = torch.nn.functional.cross_entropy(emissions.transpose(1, 2), gold, reduction="none").sum(1)
    torch.testing.assert_close(crf_nll(emissions, *none, gold, lengths), softmax)
    assert torch.equal(crf_decode(emissions, *none, lengths), emissions.argmax(2))

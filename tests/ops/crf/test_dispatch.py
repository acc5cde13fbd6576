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


def check_against_all_scores(crf, gold, lengths) -> None:
    """Likelihoods and best paths against the scores of all paths."""
    nll, best = crf_nll(*crf, gold, lengths), crf_decode(*crf, lengths)
    for i, length in enumerate(lengths.tolist()):
        scores = all_scores(crf[0][i, :length], *crf[1:])
        total = torch.logsumexp(torch.stack(list(scores.values())), dim=0)
        torch.testing.assert_close(nll[i], total - scores[tuple(gold[i, :length].tolist())])
        assert tuple(best[i, :length].tolist()) == max(scores, key=scores.get)


@pytest.mark.parametrize(("time", "tags"), [(1, 1), (1, 4), (4, 3), (5, 2)])
def test_likelihood_and_best_path_are_those_of_all_paths(time, tags):
    lengths = torch.tensor([time, max(time - 2, 1), 1])
    crf = random_crf(3, time, tags)
    check_against_all_scores(crf, torch.randint(tags, (3, time)), lengths)


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


@pytest.mark.parametrize("past", [-torch.inf, torch.nan])
@pytest.mark.parametrize("forbidden", ["a transition", "all transitions to a tag", "a tag at a step"])
def test_what_is_forbidden_has_no_probability(forbidden, past):
    crf, lengths = random_crf(3, 4, 3), torch.tensor([4, 2, 1])
    gold = torch.ones(3, 4, dtype=torch.long)
    gold[1:, 2:] = -100
    if forbidden == "a transition":
        crf[1][0, 0] = -torch.inf
    elif forbidden == "all transitions to a tag":
        crf[1][:, 0] = crf[2][0] = -torch.inf
    else:
        crf[0][:, 1, 2] = -torch.inf
    crf[0][1, 2:] = crf[0][2, 1:] = past
    check_against_all_scores(crf, gold, lengths)
    leaves = [x.requires_grad_() for x in crf]
    d_emissions, d_transitions, *others = torch.autograd.grad(crf_nll(*leaves, gold, lengths).sum(), leaves)
    assert all(x.isfinite().all() for x in (d_emissions, d_transitions, *others))
    assert not d_emissions[1, 2:].any() and not d_emissions[2, 1:].any()
    assert not d_emissions[crf[0] == -torch.inf].any() and not d_transitions[crf[1] == -torch.inf].any()
    gold[0, :2] = {"a transition": 0, "all transitions to a tag": 0, "a tag at a step": 2}[forbidden]
    assert crf_nll(*crf, gold, lengths)[0] == torch.inf


def test_without_transitions_each_step_is_its_own():
    emissions, transitions, start, end = random_crf(2, 6, 4)
    none = (torch.zeros_like(transitions), torch.zeros_like(start), torch.zeros_like(end))
    gold, lengths = torch.randint(4, (2, 6)), torch.tensor([6, 6])
    softmax = torch.nn.functional.cross_entropy(emissions.transpose(1, 2), gold, reduction="none").sum(1)
    torch.testing.assert_close(crf_nll(emissions, *none, gold, lengths), softmax)
    assert torch.equal(crf_decode(emissions, *none, lengths), emissions.argmax(2))


E_, T_, S_ = torch.zeros(2, 4, 3), torch.zeros(3, 3), torch.zeros(3)
TAGS, LENGTHS = torch.ones(2, 4, dtype=torch.int32), torch.tensor([4, 1], dtype=torch.int32)
BAD = {
    "emissions": ((E_[0], T_, S_, S_), LENGTHS, r"the emissions must be \(batch, time, tags\), got \(4, 3\)"),
    "transitions": ((E_, T_[:2], S_, S_), LENGTHS, r"the transitions must be \(3, 3\), got \(2, 3\)"),
    "start": ((E_, T_, S_[:1], S_), LENGTHS, r"the start must be \(3,\), got \(1,\)"),
    "end-device": ((E_, T_, S_, S_.to("meta")), LENGTHS, "the end is on meta, .* not on the same device"),
    "end-integer": ((E_, T_, S_, S_.long()), LENGTHS, "the end must be of a floating-point dtype, got torch.int64"),
    "lengths-zero": ((E_, T_, S_, S_), LENGTHS - 1, "lengths must be from 1 to 4, got 0"),
    "lengths-long": ((E_, T_, S_, S_), LENGTHS + 1, "lengths must be from 1 to 4, got 5"),
    "lengths-number": ((E_, T_, S_, S_), LENGTHS[:1], r"the lengths must be \(2,\), got \(1,\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(case):
    scores, lengths, message = BAD[case]
    for function, arguments in ((crf_nll, (*scores, TAGS, lengths)), (crf_decode, (*scores, lengths))):
        with pytest.raises(ValueError, match=message):
            function(*arguments)


def test_tags_that_do_not_fit_are_refused():
    for wrong, error, message in (
        (TAGS + 2, IndexError, "tag 3 is out of bounds: there are 3 tags"),
        (TAGS[:, :3], ValueError, r"the tags must be \(2, 4\), got \(2, 3\)"),
        (TAGS.float(), ValueError, "the tags must be of an integer dtype, got torch.float32"),
    ):
        with pytest.raises(error, match=message):
            crf_nll(E_, T_, S_, S_, wrong, LENGTHS)
    beyond = TAGS.clone()
    beyond[1, 1:] = 99  # past the end anything may stand
    assert torch.equal(crf_nll(E_, T_, S_, S_, beyond, LENGTHS), crf_nll(E_, T_, S_, S_, TAGS, LENGTHS))


def test_half_types_are_summed_in_float32():
    """A long sequence whose two paths differ by less than bfloat16 can hold of their sums."""
    emissions = torch.full((1, 400, 2), 1.0, dtype=torch.bfloat16)
    emissions[0, :, 1] = 1.0078125
    scores = emissions, *(torch.zeros(*size, dtype=torch.bfloat16) for size in ((2, 2), (2,), (2,)))
    scores[1].fill_(-8).fill_diagonal_(0)  # one tag throughout
    assert crf_decode(*scores, torch.tensor([400])).all()
    nll = crf_nll(*scores, torch.ones(1, 400).int(), torch.tensor([400]))
    exact = crf_nll(*(x.double() for x in scores), torch.ones(1, 400).int(), torch.tensor([400]))
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll.double(), exact, rtol=1e-3, atol=1e-4)


def test_the_path_of_a_short_sequence_is_that_of_the_sequence_alone():
    lengths = torch.tensor([6, 2, 1, 4])
    emissions, transitions = torch.randn(4, 6, 3), 5 * torch.randn(3, 3)
    paths = crf_decode(emissions, transitions, start := torch.randn(3), end := torch.randn(3), lengths)
    for path, emitted, length in zip(paths, emissions, lengths, strict=True):
        alone = crf_decode(emitted[None, :length], transitions, start, end, length[None])[0]
        assert path.tolist() == alone.tolist() + [alone[-1].item()] * (6 - length)

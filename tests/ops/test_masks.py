"""Masks: their statistics, their randomness, and the two scalings (Eq. 3 and Eq. 18 of arXiv v2)."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from rnndrop_plugin.ops import SAMPLINGS, SCALINGS, Mask, Masks, draw_mask

TIME, BATCH, HIDDEN = 20, 30, 40


def draw(rate=0.3, **options):
    return draw_mask(rate, TIME, BATCH, HIDDEN, **options)


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_rate(sampling, rate):
    keep = draw(rate, sampling=sampling).keep
    deviation = math.sqrt(rate * (1 - rate) / keep.numel())
    assert abs((~keep).double().mean() - rate) < 4 * deviation


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_units_examples_and_steps_are_independent(sampling):
    rate = 0.3
    z = (draw(rate, sampling=sampling).keep.double() - (1 - rate)) / math.sqrt(rate * (1 - rate))  # mean 0, variance 1
    for dim in range(z.dim()):
        others = [d for d in range(z.dim()) if d != dim]
        for lag in (1, 2):
            pairs = z.narrow(dim, 0, z.size(dim) - lag) * z.narrow(dim, lag, z.size(dim) - lag)
            assert abs(pairs.mean()) < 4 / math.sqrt(pairs.numel())
        # The means along a dimension vary as those of independent draws do: 1/n, within 4 deviations.
        means = z.mean(dim=others)
        count = z.numel() / z.size(dim)
        assert abs(means.square().mean() * count - 1) < 4 * math.sqrt(2 / z.size(dim))


def test_shapes():
    assert draw(sampling="step").keep.shape == (TIME, BATCH, HIDDEN)
    assert draw(sampling="sequence").keep.shape == (BATCH, HIDDEN)
    assert draw().keep.dtype == torch.bool
    assert draw(device="meta").keep.device.type == "meta"


def test_a_sequences_mask_is_that_of_each_step():
    step, sequence = draw(sampling="step"), draw(sampling="sequence")
    masks = Masks(update=step, cell=sequence)
    for t in (0, 7, TIME - 1):
        assert torch.equal(masks.at(t).update.keep, step.keep[t])
        assert torch.equal(masks.at(t).cell.keep, sequence.keep)
        assert masks.at(t).hidden.keep is None
        assert masks.at(t).update.scale == step.scale


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.999])
def test_inverted_scaling_keeps_the_mean(rate):
    ones = torch.ones(BATCH, HIDDEN, dtype=torch.float64)
    mask = draw(rate, scaling="inverted")
    dropped = torch.stack([mask.at(t)(ones) for t in range(TIME)])
    assert torch.all((dropped == 0) | (dropped == 1 / (1 - rate)))  # finite, for 0.999 also
    assert abs(dropped.mean() - 1) < 4 * math.sqrt(rate / (1 - rate) / dropped.numel())


@pytest.mark.parametrize("rate", [0.25, 0.999])
def test_expected_scaling_multiplies_in_evaluation_instead(rate):
    x = torch.randn(BATCH, HIDDEN, dtype=torch.float64)
    mask = draw(rate, scaling="expected").at(3)
    assert torch.equal(mask(x), torch.where(mask.keep, x, 0.0))  # Eq. 3, training
    evaluation = draw(rate, scaling="expected", training=False)
    assert evaluation.keep is None
    assert torch.equal(evaluation(x), (1 - rate) * x)  # Eq. 3, otherwise


def test_inverted_scaling_does_nothing_in_evaluation():
    x = torch.randn(BATCH, HIDDEN)
    assert draw(scaling="inverted", training=False)(x) is x


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("training", [True, False])
def test_rate_zero_is_no_dropout(training, scaling):
    x = torch.randn(BATCH, HIDDEN)
    before = torch.get_rng_state()
    assert draw(0, scaling=scaling, training=training)(x) is x
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_evaluation_draws_nothing(scaling):
    before = torch.get_rng_state()
    draw(scaling=scaling, training=False)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_torchs_seed_reproduces_masks_and_calls_differ(sampling):
    torch.manual_seed(7)
    first, second = draw(sampling=sampling).keep, draw(sampling=sampling).keep
    torch.manual_seed(7)
    assert torch.equal(draw(sampling=sampling).keep, first)
    assert not torch.equal(first, second)


def test_a_generator_of_ones_own():
    before = torch.get_rng_state()
    first = draw(generator=torch.Generator().manual_seed(7)).keep
    assert torch.equal(draw(generator=torch.Generator().manual_seed(7)).keep, first)
    assert not torch.equal(draw(generator=torch.Generator().manual_seed(8)).keep, first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_masks_keep_the_dtype_and_pass_gradients_where_units_are_kept(dtype):
    mask = draw(0.5).at(0)
    x = torch.randn(BATCH, HIDDEN, dtype=dtype, requires_grad=True)
    result = mask(x)
    result.sum().backward()
    assert result.dtype == dtype
    assert torch.equal(x.grad, mask.keep.to(dtype) * 2)


def test_a_mask_scales_what_it_keeps():
    mask = Mask(torch.tensor([[True, False, True]]), 1.5)
    assert mask(torch.tensor([[2.0, 3.0, -4.0]])).tolist() == [[3.0, 0.0, -6.0]]


@pytest.mark.parametrize("rate", [-0.1, 1, 1.0, 1.5, math.nan, math.inf, True, None, "0.5"])
def test_rates_outside_0_to_1_are_refused(rate):
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got "):
        draw(rate)


@pytest.mark.parametrize("rate", [np.float16(0.375), np.float32(0.375), np.float64(0.375), Fraction(3, 8)])
def test_a_rate_is_any_real_number(rate):
    """Neither half precision nor a fraction has all that a float has."""
    torch.manual_seed(7)
    expected = draw(0.375)
    torch.manual_seed(7)
    found = draw(rate)
    assert torch.equal(found.keep, expected.keep) and found.scale == expected.scale == 1.6
    assert draw(rate, scaling="expected", training=False).scale == 0.625


def test_a_fraction_that_is_1_as_a_float_is_refused():
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got Fraction"):
        draw(1 - Fraction(1, 10**20))


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="sampling must be one of step, sequence, got 'steps'"):
        draw(sampling="steps")
    with pytest.raises(ValueError, match="scaling must be one of inverted, expected, got 'none'"):
        draw(0, scaling="none")

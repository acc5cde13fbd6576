"""The loss of language models, computed together with the output layer."""

import math
from dataclasses import dataclass, field
from typing import Optional

import torch
import torch.nn.functional as F
from fairseq import utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor

from rnndrop_plugin.criterions.scores import mean, number, totals
from rnndrop_plugin.errors import InputError
from rnndrop_plugin.ops import linear_cross_entropy

TEACHER_WEIGHT = 0.5  # the default, if there are teachers


@dataclass
class RnndropCrossEntropyConfig(FairseqDataclass):
    label_smoothing: float = field(
        default=0.0, metadata={"help": "probability taken from the target and shared by all other words"}
    )
    activation_regularization: float = field(
        default=0.0,
        metadata={"help": "weight of the mean square of the last recurrent layer's outputs, after forward dropout"},
    )
    temporal_activation_regularization: float = field(
        default=0.0,
        metadata={"help": "weight of the mean square of these outputs' change per step, before forward dropout"},
    )
    teacher_weight: Optional[float] = field(
        default=None,
        metadata={
            "help": "with --teachers: the probability, in [0, 1], taken from the target and given to the words that "
            f"the teachers expect; {TEACHER_WEIGHT} if not set"
        },
    )
    sentence_avg: bool = II("optimization.sentence_avg")


@register_criterion("rnndrop_cross_entropy", dataclass=RnndropCrossEntropyConfig)
class RnndropCrossEntropy(FairseqCriterion):
    """fairseq's cross_entropy and label_smoothed_cross_entropy, but faster, and with more metrics.

    If the model's decoder ``is_linear``, the output layer and the loss are computed together, in float32 without
    keeping the logits (:func:`rnndrop_plugin.ops.linear_cross_entropy`). For any other model fairseq's own way is used.

    In training :func:`activation_penalty` is added to the loss per target. Its alpha is --activation-regularization,
    and its beta --temporal-activation-regularization. With --teachers, which draw words for each target, these words
    get the share --teacher-weight of the target's probability in equal parts (knowledge distillation; Hinton et al.
    2015, "Distilling the knowledge in a neural network", section 2).

    Logged: ``loss`` (base 2, per target, or per sentence with --sentence-avg), ``nll_loss`` (bits per target, without
    smoothing, regularisation and teachers), ``ppl`` (of nll_loss, over all targets) and ``ppl_batch_mean``, the
    arithmetic mean over batches of exp(negative log-likelihood per target), which is what Semeniuta et al. (2016)
    report (Table 2); for batches of equal size it is at least ``ppl``. A batch is what all processes read at a time
    (in training with several processes and --update-freq: for an update). The last batch counts as much as the others,
    though it may be shorter.

    Raises:
        InputError: the smoothing or a weight is out of its range.
    """

    def __init__(
        self,
        task,
        sentence_avg: bool,
        label_smoothing: float = 0.0,
        activation_regularization: float = 0.0,
        temporal_activation_regularization: float = 0.0,
        teacher_weight: float | None = None,
    ):
        super().__init__(task)
        if not 0 <= label_smoothing < 1:
            raise InputError(f"--label-smoothing must be in [0, 1), got {label_smoothing}")
        taught = getattr(task.cfg, "teachers", None) is not None
        if teacher_weight is not None and not taught:
            raise InputError("--teacher-weight needs --teachers")
        teacher_weight = TEACHER_WEIGHT if teacher_weight is None else teacher_weight
        if not 0 <= teacher_weight <= 1:
            raise InputError(f"--teacher-weight must be in [0, 1], got {teacher_weight}")
        if taught and label_smoothing + teacher_weight > 1:
            raise InputError(
                f"--label-smoothing {label_smoothing} and --teacher-weight {teacher_weight} are more than 1 together"
            )
        self.alpha, self.beta = activation_regularization, temporal_activation_regularization
        for flag, weight in (
            ("--activation-regularization", self.alpha),
            ("--temporal-activation-regularization", self.beta),
        ):
            if not 0 <= weight < math.inf:
                raise InputError(f"{flag} must be a number of at least 0, got {weight}")
        self.sentence_avg = sentence_avg
        self.label_smoothing = label_smoothing
        self.teacher_weight = teacher_weight

    def forward(self, model, sample):
        """The summed loss, what to divide its gradient by, and the sums to log."""
        loss, nll = self.compute_loss(model, sample)
        ntokens, nsentences = sample["ntokens"], sample["target"].size(0)
        sample_size = nsentences if self.sentence_avg else ntokens
        logging_output = {
            "loss": loss.detach(),
            "nll_loss": nll.detach(),
            "ntokens": ntokens,
            "nsentences": nsentences,
            "sample_size": sample_size,
        }
        return loss, sample_size, logging_output

    def compute_loss(self, model, sample) -> tuple[Tensor, Tensor]:
        """The loss and the negative log-likelihood, both summed over the targets that are not padding.

        Raises:
            InputError: the model has an adaptive softmax, or it gives no outputs to regularise.
        """
        decoder = getattr(model, "decoder", None)
        words = sample.get("teacher_words") if model.training else None
        if getattr(decoder, "adaptive_softmax", None) is not None:
            raise InputError("the model has an adaptive softmax: use --criterion adaptive_loss")
        if getattr(decoder, "is_linear", False):
            features, extra = model(**sample["net_input"], features_only=True)
            weight, bias = decoder.output_weights()
            target = sample["target"]
            loss, nll = linear_cross_entropy(features, weight, bias, target, self.padding_idx, self.label_smoothing)
            if words is not None:
                preferred = linear_preference(features, weight, bias, target, words)
        else:
            net_output = model(**sample["net_input"])
            extra = net_output[1] if isinstance(net_output, tuple) else None
            log_probs = model.get_normalized_probs(net_output, log_probs=True)
            target = model.get_targets(sample, net_output)
            loss, nll = label_smoothed_nll_loss(
                log_probs.flatten(0, -2), target.flatten(), self.label_smoothing, ignore_index=self.padding_idx
            )
            if words is not None:
                of_words = log_probs.gather(2, words.long()).mean(2)
                preferred = log_probs.gather(2, target.unsqueeze(2)).squeeze(2) - of_words
        if words is not None:
            loss = loss + self.teacher_weight * (preferred * (target != self.padding_idx)).sum()
        if model.training and (self.alpha > 0 or self.beta > 0):
            if not isinstance(extra, dict) or "dropped_outputs" not in extra:
                raise InputError(
                    "--activation-regularization and --temporal-activation-regularization need one of rnndrop's "
                    f"language models, and {type(model).__name__} is not one"
                )
            scored = target != self.padding_idx
            penalty = activation_penalty(extra["outputs"], extra["dropped_outputs"], scored, self.alpha, self.beta)
            loss = loss + sample["ntokens"] * penalty
        return loss, nll

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict]) -> None:
        """Log the averages over ``logging_outputs``, one for each batch, summed over the processes."""
        logs = [{name: number(x) for name, x in log.items()} for log in logging_outputs]
        loss, nll, size, targets = totals(logs, "loss", "nll_loss", "sample_size", "ntokens")
        bits = 1 / math.log(2)
        metrics.log_scalar("loss", mean(loss, size) * bits, size, round=3)
        metrics.log_scalar("nll_loss", mean(nll, targets) * bits, targets, round=3)
        metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["nll_loss"].avg))
        for log in logs:
            ppl = torch.tensor(mean(log["nll_loss"], log["ntokens"])).exp().item()  # inf if it exceeds float32
            metrics.log_scalar("ppl_batch_mean", ppl, round=2)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Yes, because all outputs are sums."""
        return True


def linear_preference(features: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, words: Tensor) -> Tensor:
    """How much higher the logit of each target is than the mean logit of ``words``, computed from these logits alone.

    The softmax normalises both by the same number, so this is also the difference of their log-probabilities.

    Args:
        features: ``(batch, time, features)``.
        weight, bias: of the output layer, ``(vocabulary, features)`` and ``(vocabulary,)``.
        target: ``(batch, time)``.
        words: ``(batch, time, words)``.

    Returns:
        ``(batch, time)``, float32.
    """
    weight = weight.float()
    of_words = F.embedding_bag(words.flatten(0, 1), weight, mode="mean").view(*target.shape, -1)
    difference = (features * (F.embedding(target, weight) - of_words)).sum(2)
    if bias is not None:
        bias = bias.float()
        difference = difference + bias[target] - bias[words].mean(2)
    return difference


def activation_penalty(outputs: Tensor, dropped: Tensor, scored: Tensor, alpha: float, beta: float) -> Tensor:
    r"""Activation regularisation and temporal activation regularisation of a window.

    .. math:: \alpha \, \mathrm{mean}((m * h_t)^2) + \beta \, \mathrm{mean}((h_t - h_{t+1})^2)

    See Merity, McCann and Socher 2017, "Revisiting activation regularization for language RNNs". As in their code, the
    norms are mean squares.

    Args:
        outputs: ``(batch, time, hidden)``, the h_t.
        dropped: the outputs after forward dropout, m * h_t.
        scored: bool, ``(batch, time)``, False for padding, which does not count.
    """
    penalty = outputs.new_zeros(())
    if alpha > 0:
        penalty = penalty + alpha * _mean_square(dropped, scored)
    if beta > 0 and outputs.size(1) > 1:
        penalty = penalty + beta * _mean_square(outputs[:, 1:] - outputs[:, :-1], scored[:, 1:])
    return penalty


def _mean_square(x: Tensor, counted: Tensor) -> Tensor:
    squares = x.float().square().mean(2)
    return (squares * counted).sum() / counted.sum().clamp(min=1)

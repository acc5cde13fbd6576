"""Ways to evaluate a language model by other probabilities than its own. Each one is reported with its settings.

All of them read a token only after they have predicted it.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Optional

import torch
import torch.nn.functional as F
from fairseq import utils
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.constants import StrEnum
from torch import Tensor, nn

from rnndrop_plugin.errors import InputError
from rnndrop_plugin.ops import linear_cross_entropy

DECAY, EPSILON = 0.0, 1e-4  # of dynamic evaluation, unless flags say otherwise
THETA, WEIGHT = 0.3, 0.1  # of the neural cache
TEMPERATURES = tuple(1 + step / 40 for step in range(-8, 13))  # 0.8 to 1.3

# Not fairseq's ChoiceEnum: a task keeps its flags, and pickle could not find such a class by its name.
DynamicEvaluationChoice = StrEnum("DynamicEvaluationChoice", {"sgd": "sgd", "rms": "rms"}, module=__name__)


@dataclass
class EvaluationConfig(FairseqDataclass):
    """Flags for fairseq-eval-lm."""

    softmax_temperature: str = field(
        default="1",
        metadata={
            "help": "evaluation: divide the logits by T; `valid` chooses the T among 0.8, 0.825, ... 1.3 that is best "
            "on the validation text"
        },
    )
    dynamic_evaluation: Optional[DynamicEvaluationChoice] = field(
        default=None,
        metadata={
            "help": "evaluation: learn from each window of the text after predicting it (Krause et al. 2018): sgd, by "
            "SGD; rms, with gradients divided by their root mean square on the training text"
        },
    )
    dynamic_evaluation_lr: Optional[float] = field(
        default=None, metadata={"help": "learning rate of dynamic evaluation"}
    )
    dynamic_evaluation_decay: float = field(
        default=DECAY,
        metadata={"help": "how far the parameters move back towards the trained ones after each window, in [0, 1]"},
    )
    dynamic_evaluation_epsilon: float = field(
        default=EPSILON,
        metadata={
            "help": "added to the root mean squares that rms divides by; where these are much smaller, rms is like SGD"
        },
    )
    neural_cache_size: int = field(
        default=0,
        metadata={
            "help": "evaluation: mix in a cache of the last N words and their states (Grave et al. 2017); 0: none"
        },
    )
    neural_cache_theta: float = field(default=THETA, metadata={"help": "theta, the flatness of the cache"})
    neural_cache_weight: float = field(default=WEIGHT, metadata={"help": "lambda, the cache's share, in [0, 1)"})


class Evaluation:
    """A way of evaluating a language model.

    Raises:
        InputError: a number out of its range, or flags that have no effect without another one.
    """

    def __init__(self, cfg: EvaluationConfig):
        self.temperature_is_chosen = cfg.softmax_temperature == "valid"
        self.temperature = None if self.temperature_is_chosen else _parse_temperature(cfg.softmax_temperature)
        self.rule = None if cfg.dynamic_evaluation is None else str(cfg.dynamic_evaluation)
        self.lr, self.decay = cfg.dynamic_evaluation_lr, cfg.dynamic_evaluation_decay
        self.epsilon = cfg.dynamic_evaluation_epsilon
        if self.rule and (self.lr is None or not 0 < self.lr < math.inf):
            raise InputError(f"--dynamic-evaluation {self.rule} needs a --dynamic-evaluation-lr above 0, got {self.lr}")
        if not 0 <= self.decay <= 1:
            raise InputError(f"--dynamic-evaluation-decay must be in [0, 1], got {self.decay}")
        if not 0 < self.epsilon < math.inf:
            raise InputError(f"--dynamic-evaluation-epsilon must be above 0, got {self.epsilon}")
        if cfg.neural_cache_size < 0:
            raise InputError(f"--neural-cache-size must not be negative, got {cfg.neural_cache_size}")
        if not 0 <= cfg.neural_cache_weight < 1:
            raise InputError(f"--neural-cache-weight must be in [0, 1), got {cfg.neural_cache_weight}")
        if not abs(cfg.neural_cache_theta) <= torch.finfo(torch.float32).max:
            raise InputError(f"--neural-cache-theta must be a finite float32, got {cfg.neural_cache_theta}")
        self.cache = None
        if cfg.neural_cache_size:
            self.cache = NeuralCache(cfg.neural_cache_size, cfg.neural_cache_theta, cfg.neural_cache_weight)

        if not self.rule and [self.lr, self.decay, self.epsilon] != [None, DECAY, EPSILON]:
            raise InputError("--dynamic-evaluation-lr, -decay and -epsilon need --dynamic-evaluation")
        if self.cache is None and [cfg.neural_cache_theta, cfg.neural_cache_weight] != [THETA, WEIGHT]:
            raise InputError("--neural-cache-theta and --neural-cache-weight need a --neural-cache-size")

    @property
    def is_static(self) -> bool:
        """Whether the probabilities are the model's own."""
        return self.temperature == 1 and not self.temperature_is_chosen and self.rule is None and self.cache is None

    def __str__(self) -> str:
        parts = ["static evaluation"]
        if self.rule:
            epsilon = f", epsilon {self.epsilon:g}" if self.rule == "rms" else ""
            parts = [f"dynamic evaluation ({self.rule}, lr {self.lr:g}, decay {self.decay:g}{epsilon})"]
        if self.cache is not None:
            cache = self.cache
            parts.append(f"neural cache (size {cache.size}, theta {cache.theta:g}, weight {cache.weight:g})")
        if self.temperature_is_chosen:
            value = "" if self.temperature is None else f" {self.temperature:g}"
            parts.append(f"softmax temperature{value} chosen on the validation text")
        elif self.temperature != 1:
            parts.append(f"softmax temperature {self.temperature:g}")
        return ", ".join(parts)

    def begin(
        self,
        model: nn.Module,
        batches: Iterable,
        validation: Callable[[], Iterable],
        training: Callable[[], Iterable],
    ) -> Iterable:
        """Prepare ``model`` for this evaluation. Returns the batches to read; dynamic evaluation learns from them.

        Args:
            batches: those of the text to evaluate, in order.
            validation, training: functions that return the batches of these texts; they are called only if needed.

        Raises:
            InputError: the model has an adaptive softmax, or would have to learn in half precision.
        """
        if model.decoder.adaptive_softmax is not None:
            raise InputError(f"the model has an adaptive softmax, which only has a static evaluation, not: {self}")
        if self.rule and any(parameter.dtype.itemsize < 4 for parameter in model.parameters()):
            raise InputError("--dynamic-evaluation needs parameters of float32, which small steps change: drop --fp16")
        if self.temperature_is_chosen:
            self.temperature = choose_temperature(model, validation())
        if self.rule:
            squares = mean_square_gradients(model, training()) if self.rule == "rms" else None
            batches = DynamicBatches(model, batches, self.lr, self.decay, squares, self.epsilon)
        model.evaluation = self
        return batches

    def log_probs(self, decoder: nn.Module, logits: Tensor, extra: dict, sample: dict) -> Tensor:
        """Log-probabilities ``(batch, time, vocabulary)`` of a window. The cache then adds the window's targets.

        Args:
            decoder: the model's, which turns logits into probabilities.
            logits: those of the window.
            extra: has the recurrent ``outputs``, see :meth:`RecurrentDecoder.extract_features`.
            sample: the batch, with ``target`` and ``net_input``.

        Raises:
            InputError: there is a cache, and the logits are only a part of the window's, as with --softmax-batch.
        """
        log_probs = decoder.get_normalized_probs((logits.float() / self.temperature, extra), log_probs=True)
        if self.cache is None:
            return log_probs
        if log_probs.shape[:2] != extra["outputs"].shape[:2]:
            raise InputError("--neural-cache-size needs whole windows: it does not go with --softmax-batch")
        if sample["net_input"].get("starts_stream", True):
            self.cache.clear()
        return self.cache(log_probs, extra["outputs"].float(), sample["target"])


class NeuralCache:
    r"""Words that came after states like the present one are more probable (Grave et al. 2017, section 3).

    .. math::
        p(w) = (1 - \lambda) p_\mathrm{model}(w) + \lambda p_\mathrm{cache}(w), \quad
        p_\mathrm{cache}(w) \propto \sum_{i < t} 1[w = x_{i+1}] \exp(\theta h_t^\top h_i)

    The sum is over the last ``size`` words, and the h are the outputs of the last recurrent layer. While the cache is
    empty, p is the model's own probability.

    Args:
        size: how many words it keeps.
        theta: how much more a similar state counts.
        weight: lambda.
    """

    def __init__(self, size: int, theta: float, weight: float):
        self.size, self.theta, self.weight = size, theta, weight
        self.clear()

    def clear(self) -> None:
        """Forget all words."""
        self.states: Tensor | None = None  # (batch, words, hidden)
        self.words: Tensor | None = None  # (batch, words)

    def __call__(self, log_probs: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mix the cache into ``log_probs`` and add the window's words to it.

        Args:
            log_probs: ``(batch, time, vocabulary)``, the model's.
            outputs: ``(batch, time, hidden)``, the h_t from which the targets are predicted.
            targets: ``(batch, time)``, the words that follow; only the end of the text may have padding.
        """
        if self.states is None:
            self.states, self.words = outputs[:, :0], targets[:, :0]
        kept, time = self.words.size(1), targets.size(1)
        states, words = torch.cat([self.states, outputs], 1), torch.cat([self.words, targets], 1)
        present = kept + torch.arange(time, device=words.device).unsqueeze(1)
        past = torch.arange(kept + time, device=words.device).unsqueeze(0)
        visible = (past < present) & (past >= present - self.size)
        scores = math.copysign(1, self.theta) * outputs @ states.transpose(1, 2)
        scores = abs(self.theta) * (scores - scores.masked_fill(~visible, -torch.inf).amax(2, keepdim=True))
        attention = torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=2)
        empty = ~visible.any(1)
        attention = attention.masked_fill(empty[None, :, None], 0.0)
        cached = torch.zeros_like(log_probs).scatter_add_(2, words.unsqueeze(1).expand_as(attention), attention)
        mixed = torch.logaddexp(log_probs + math.log1p(-self.weight), (cached * self.weight).log())
        self.states, self.words = states[:, -self.size :], words[:, -self.size :]
        return torch.where(empty[None, :, None], log_probs, mixed)


class DynamicBatches:
    r"""The batches of a text. The model learns from each batch when the next one is requested.

    .. math::
        \theta &\leftarrow \theta - \eta \nabla L + \lambda (\theta_g - \theta) \\
        \theta &\leftarrow \theta - \eta \nabla L / (\sqrt{s} + \epsilon) + \lambda r (\theta_g - \theta)

    The first rule is "sgd", the second "rms". L is the mean negative log-likelihood of the batch's targets, theta_g the
    trained parameters, s the mean square of the gradient on the training text and r = sqrt(s) / mean(sqrt(s)), where
    lambda r is at most 1 (Krause et al. 2018, "Dynamic evaluation of neural sequence models", section 5). The next
    batch starts from the state that the model reached at the end of this batch before the update.

    Args:
        model: the model that is evaluated with these batches.
        batches: those of the text, in order.
        mean_squares: s of each trained parameter, for the rule "rms"; None for "sgd".
        epsilon: that of the rule "rms".

    Raises:
        InputError: the model diverges, so its gradients are no longer finite.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable,
        lr: float,
        decay: float,
        mean_squares: list[Tensor] | None = None,
        epsilon: float = EPSILON,
    ):
        self.model, self.batches, self.lr = model, batches, lr
        self.parameters = trained_parameters(model)
        self.start = [parameter.detach().clone() for parameter in self.parameters]
        self.divisors = [parameter.new_ones(()) for parameter in self.parameters]
        self.decays = [decay] * len(self.parameters)
        if mean_squares is not None:
            roots = [square.sqrt() for square in mean_squares]
            mean = sum(float(root.sum()) for root in roots) / sum(root.numel() for root in roots)
            self.divisors = [root + epsilon for root in roots]
            self.decays = [(decay * root / mean).clamp(max=1) for root in roots]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict]:
        decoder = self.model.decoder
        for batch in self.batches:
            before = decoder.carried[False]
            yield batch
            after = decoder.carried[False]
            decoder.carried[False] = before
            gradients = nll_gradients(self.model, self.parameters, batch)
            decoder.carried[False] = after
            # If any parameter is not finite, no gradient is, so the smallest gradient shows it.
            if not min(gradients, key=Tensor.numel).isfinite().all():
                raise InputError(f"the dynamic evaluation diverges: --dynamic-evaluation-lr {self.lr:g} is too high")
            self.step(gradients)

    @torch.no_grad()
    def step(self, gradients: list[Tensor]) -> None:
        """Update the parameters by the gradients of L."""
        updates = zip(self.parameters, gradients, self.start, self.divisors, self.decays, strict=True)
        for parameter, gradient, start, divisor, decay in updates:
            parameter.lerp_(start, decay).addcdiv_(gradient, divisor, value=-self.lr)


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def nll_gradients(model: nn.Module, parameters: list[nn.Parameter], batch: dict) -> list[Tensor]:
    """The gradients of a batch's mean negative log-likelihood. The model must be in evaluation; its state advances."""
    batch = utils.move_to_cuda(batch, parameters[0].device)
    decoder = model.decoder
    pad, target = decoder.dictionary.pad(), batch["target"]
    with torch.enable_grad():
        if decoder.is_linear:
            features, _ = model(**batch["net_input"], features_only=True)
            loss, _ = linear_cross_entropy(features, *decoder.output_weights(), target, pad)
        else:
            log_probs = decoder.get_normalized_probs(model(**batch["net_input"]), log_probs=True)
            loss = F.nll_loss(log_probs.flatten(0, 1), target.flatten(), ignore_index=pad, reduction="sum")
        return list(torch.autograd.grad(loss / batch["ntokens"], parameters))


def mean_square_gradients(model: nn.Module, batches: Iterable) -> list[Tensor]:
    """The mean over ``batches`` of the squared gradient of each trained parameter, without dropout."""
    model.eval()
    parameters, count = trained_parameters(model), 0
    squares = [torch.zeros_like(parameter) for parameter in parameters]
    for batch in batches:
        for square, gradient in zip(squares, nll_gradients(model, parameters, batch), strict=True):
            square.add_(gradient.square())
        count += 1
    return [square / count for square in squares]


@torch.no_grad()
def choose_temperature(model: nn.Module, batches: Iterable) -> float:
    """The one of ``TEMPERATURES`` that gives the targets of ``batches`` the highest likelihood."""
    model.eval()
    device, pad = next(model.parameters()).device, model.decoder.dictionary.pad()
    losses = [0.0] * len(TEMPERATURES)
    for batch in batches:
        batch = utils.move_to_cuda(batch, device)
        (logits, extra), target = model(**batch["net_input"]), batch["target"].flatten()
        for k, temperature in enumerate(TEMPERATURES):
            log_probs = model.decoder.get_normalized_probs((logits.float() / temperature, extra), log_probs=True)
            losses[k] += float(F.nll_loss(log_probs.flatten(0, 1), target, ignore_index=pad, reduction="sum"))
    return TEMPERATURES[losses.index(min(losses))]


def _parse_temperature(text: str) -> float:
    try:
        temperature = float(text)
    except ValueError:
        temperature = math.nan
    if not 1e-30 <= temperature < math.inf:  # so that no quotient is infinite in float32
        raise InputError(f"--softmax-temperature must be at least 1e-30, or `valid`, got {text}")
    return temperature

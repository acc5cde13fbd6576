"""Forward dropout: of features, with one mask per step or per sequence, and of words."""

import torch.nn.functional as F
from torch import Tensor, nn

from rnndrop_plugin.ops import SAMPLINGS, draw_mask
from rnndrop_plugin.ops.checks import check_choice, check_rate


def dropout(x: Tensor, rate: float, training: bool, sampling: str = "step", batch_first: bool = False) -> Tensor:
    """Drop each feature with probability ``rate`` in training and divide what is kept by 1 - rate.

    Args:
        x: ``(time, batch, features)``, or ``(batch, time, features)`` with ``batch_first``; without steps,
            ``(batch, features)``.
        sampling: ``"step"`` draws a mask for each step, as torch.nn.functional.dropout does; ``"sequence"`` one for
            all steps of a sequence (Gal 2015, section 4; the "locked" dropout of Merity et al. 2018, section 4.2).

    Raises:
        ValueError: one mask is to be drawn for all steps, and ``x`` has another number of dimensions.
    """
    if sampling == "step" or x.dim() == 2:
        return F.dropout(x, rate, training)
    if x.dim() != 3:
        order = "(batch, time, features)" if batch_first else "(time, batch, features)"
        raise ValueError(f"one mask per sequence needs {order} or (batch, features), got {tuple(x.shape)}")
    if not training or rate == 0:
        return x
    batch, features = x.size(0 if batch_first else 1), x.size(2)
    mask = draw_mask(rate, 1, batch, features, sampling="sequence", device=x.device)
    factors = mask.keep.to(x.dtype) * mask.scale
    return x * factors.unsqueeze(1 if batch_first else 0)


class Dropout(nn.Module):
    """:func:`dropout` of ``(batch, time, features)`` as a module.

    Args:
        rate: the probability of dropping a feature, in [0, 1).
        sampling: ``"step"`` or ``"sequence"``.

    Raises:
        ValueError: a rate outside [0, 1) or an unknown sampling.
    """

    def __init__(self, rate: float, sampling: str = "step") -> None:
        super().__init__()
        check_choice("sampling", sampling, SAMPLINGS)
        self.rate = check_rate("rate", rate)
        self.sampling = sampling

    def forward(self, x: Tensor) -> Tensor:
        """Drop features of ``x``, which is ``(batch, time, features)`` or ``(batch, features)`` and keeps its shape."""
        return dropout(x, self.rate, self.training, self.sampling, batch_first=True)

    def extra_repr(self) -> str:
        """The rate, and whether a mask is drawn per step or per sequence."""
        return f"{self.rate} per {self.sampling}"


class EmbeddingDropout(nn.Module):
    """Drops the embeddings of words (Gal 2015, section 4.2; Merity et al. 2018, section 4.3).

    A word of the vocabulary is dropped with probability ``rate``, and then at every place where it stands in a
    sequence. The embeddings of the other words are divided by 1 - rate. Words are drawn separately for each sequence.

    Args:
        rate: the probability of dropping a word, in [0, 1).
        vocabulary: the number of words.

    Raises:
        ValueError: a rate outside [0, 1).
    """

    def __init__(self, rate: float, vocabulary: int) -> None:
        super().__init__()
        self.rate = check_rate("rate", rate)
        self.vocabulary = vocabulary

    def forward(self, embedded: Tensor, words: Tensor) -> Tensor:
        """Drop words from ``embedded`` ``(batch, time, features)``, the embeddings of ``words`` ``(batch, time)``."""
        if not self.training or self.rate == 0:
            return embedded
        mask = draw_mask(self.rate, 1, len(words), self.vocabulary, sampling="sequence", device=words.device)
        return embedded * (mask.keep.gather(1, words).to(embedded.dtype) * mask.scale).unsqueeze(2)

    def extra_repr(self) -> str:
        """The rate."""
        return f"{self.rate}"

"""LSTM, GRU and RNN cells with recurrent dropout. A cell computes one step, for loops that feed their output back."""

from typing import Any

import torch
from torch import Tensor, nn

from rnndrop_plugin.modules.recurrent_dropout import GRUForm, RecurrentDropout
from rnndrop_plugin.ops import Masks, Weights, recurrence


class _Cell(RecurrentDropout, nn.RNNCellBase):
    """What LSTMCell, GRUCell and RNNCell share. The parameters have torch.nn's names and shapes."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **dropout: Any,
    ) -> None:
        super().__init__(input_size, hidden_size, bias=bias, device=device, dtype=dtype, **dropout)

    def draw_masks(self, time: int, batch: int) -> Masks:
        """Draw the masks of ``time`` steps over ``batch`` sequences.

        ``masks.at(t)`` are the masks of step ``t``. A mask that is sampled per sequence is the same at every step.
        In evaluation nothing is drawn, and the masks at most scale, as ``scaling`` says.
        """
        return self._draw_masks(time, batch, self.weight_ih.device)

    def forward(
        self, input: Tensor, hx: Tensor | tuple[Tensor, Tensor] | None = None, masks: Masks | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Compute one step, as torch.nn does.

        Args:
            input: ``(batch, input)`` or ``(input,)``.
            hx: the state before the step, zeros if None; ``(batch, hidden)`` or ``(hidden,)``, for an LSTM a
                tuple of two, h and c.
            masks: the dropout masks of this step, see :meth:`draw_masks`; drawn for this call if None.

        Returns:
            The state after the step, in the form of ``hx``. Its h is the cell's output.

        Raises:
            ValueError or TypeError: an input, state or masks of the wrong form, shape, dtype or device; in
                training also a call without masks if a kind of dropout is sampled per sequence.
        """
        if input.dim() not in (1, 2):
            raise ValueError(f"expected input to be 1D or 2D, got {input.dim()}D")
        sequence = input.unsqueeze(0) if input.dim() == 2 else input[None, None]
        batch = sequence.size(1)
        state = self._zero_state(batch, self.hidden_size, like=input) if hx is None else self._as_state(hx)
        if input.dim() == 1 and hx is not None:
            state = tuple(s.unsqueeze(0) for s in state)
        if masks is None:
            self._refuse_to_sample_per_sequence()
            masks = self._draw_masks(1, batch, input.device)
        elif not isinstance(masks, Masks):
            raise TypeError(f"masks must be Masks, those of one step, got {type(masks).__name__}")
        _, state = recurrence(
            self.cell,
            sequence,
            state,
            Weights(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh),
            masks,
            nonlinearity=self.nonlinearity,
            backend=self.backend,
        )
        if input.dim() == 1:
            state = tuple(s.squeeze(0) for s in state)
        return state if self.cell == "lstm" else state[0]

    def _refuse_to_sample_per_sequence(self) -> None:
        for kind in Masks._fields:
            per_sequence = getattr(self, f"{kind}_dropout") and getattr(self, f"{kind}_sampling") == "sequence"
            if self.training and per_sequence:
                raise ValueError(
                    f"{kind} dropout is sampled per sequence, which one step cannot do: call draw_masks(time, batch) "
                    "once for a batch of sequences and give masks.at(t) to each step"
                )


class LSTMCell(_Cell, nn.LSTMCell):
    r"""A drop-in for torch.nn.LSTMCell with recurrent dropout (Semeniuta et al. 2016, Eq. 4 to 9).

    It computes one step of :class:`~rnndrop_plugin.modules.LSTM`:

    .. math::
        i, f, o &= \sigma(W_\ast x + U_\ast d_h(h) + b_\ast) \\
        g &= \phi(W_g x + U_g d_h(h) + b_g) \\
        c' &= d_c(f * c + i * d_u(g)) \\
        h' &= o * \phi(c')

    Parameters have torch.nn.LSTMCell's names, shapes and gate order (i, f, g, o), and state dicts load both ways.

    Args:
        input_size, hidden_size, bias, device, dtype: as in torch.nn.LSTMCell.
        dropout: the keywords of :class:`~rnndrop_plugin.modules.LSTM`: ``update_dropout``, ``hidden_dropout``,
            ``cell_dropout``, ``sampling`` (and one for each kind), ``scaling``, ``nonlinearity``, ``backend``.

    Raises:
        ValueError: a rate outside [0, 1) or an unknown choice.

    A decoder that feeds its output back draws masks once for a batch of sequences:

    >>> import torch
    >>> from rnndrop_plugin.modules import LSTMCell
    >>> cell = LSTMCell(8, 8, update_dropout=0.25, hidden_dropout=0.1, hidden_sampling="sequence")
    >>> h, c = torch.zeros(2, 3, 8)
    >>> masks = cell.draw_masks(time=5, batch=3)
    >>> for t in range(5):
    ...     h, c = cell(h, (h, c), masks.at(t))
    >>> h.shape
    torch.Size([3, 8])
    """

    cell = "lstm"


class GRUCell(_Cell, GRUForm, nn.GRUCell):  # _Cell first: torch.nn.utils.skip_init reads its signature
    r"""One step of a GRU with recurrent dropout (Semeniuta et al. 2016, Eq. 10 to 13).

    It computes one step of :class:`~rnndrop_plugin.modules.GRU`:

    .. math::
        r, z &= \sigma(W_\ast x + b_{i\ast} + U_\ast d_h(h) + b_{h\ast}) \\
        n &= \phi(W_n x + b_{in} + U_n (r * d_h(h)) + b_{hn}) \\
        h' &= d_c(z * h + (1 - z) * d_u(n))

    With ``reset_after`` the candidate is torch.nn.GRUCell's,
    :math:`n = \phi(W_n x + b_{in} + r * (U_n d_h(h) + b_{hn}))`, and state dicts load both ways.

    Args:
        reset_after: False for the paper's candidate, True for torch.nn.GRUCell's.

    The other arguments are those of :class:`LSTMCell`; ``cell_dropout`` drops the new h.

    >>> import torch
    >>> from rnndrop_plugin.modules import GRUCell
    >>> cell = GRUCell(4, 8, update_dropout=0.25, reset_after=True)
    >>> h = cell(torch.randn(3, 4))  # from a state of zeros
    >>> h = cell(torch.randn(3, 4), h)
    >>> h.shape
    torch.Size([3, 8])
    """


class RNNCell(_Cell, nn.RNNCell):
    r"""One step of a vanilla RNN with dropout of the hidden state (Semeniuta et al. 2016, Eq. 1 and 2).

    .. math:: h' = \phi(W x + U d_h(h) + b)

    A drop-in for torch.nn.RNNCell. There is no update and no cell to drop: the only recurrent dropout is
    ``hidden_dropout``. The other arguments are those of :class:`LSTMCell`.

    >>> import torch
    >>> from rnndrop_plugin.modules import RNNCell
    >>> cell = RNNCell(4, 8, nonlinearity="relu", hidden_dropout=0.25)
    >>> cell(torch.randn(3, 4)).shape
    torch.Size([3, 8])
    """

    cell = "rnn"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **dropout: Any,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype, nonlinearity=nonlinearity, **dropout)

"""LSTM, GRU and RNN layers with recurrent dropout, otherwise used like those of torch.nn."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from rnndrop_plugin.ops import (
    BACKENDS,
    NONLINEARITIES,
    SAMPLINGS,
    SCALINGS,
    Masks,
    State,
    Weights,
    draw_mask,
    recurrence,
)
from rnndrop_plugin.ops.masks import ArgumentError, check_choice, check_rate
from rnndrop_plugin.ops.recurrence.dispatch import compiled_trains_faster, in_autocast


class _RecurrentDropout(nn.RNNBase):
    """What LSTM, GRU and RNN share. Parameters, their names and their checks are those of torch.nn."""

    cell: str  # as ops.recurrence names it

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        update_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        cell_dropout: float = 0.0,
        sampling: str = "step",
        update_sampling: str | None = None,
        hidden_sampling: str | None = None,
        cell_sampling: str | None = None,
        scaling: str = "inverted",
        nonlinearity: str = "tanh",
        backend: str = "auto",
        proj_size: int = 0,
    ) -> None:
        if proj_size != 0:
            raise ValueError("proj_size is not supported: the paper's cells have no projection")
        super().__init__(
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
        )
        self.update_dropout = update_dropout
        self.hidden_dropout = hidden_dropout
        self.cell_dropout = cell_dropout
        self.update_sampling = update_sampling or sampling
        self.hidden_sampling = hidden_sampling or sampling
        self.cell_sampling = cell_sampling or sampling
        self.scaling = scaling
        self.nonlinearity = nonlinearity
        self.backend = backend
        check_choice("sampling", sampling, SAMPLINGS)
        for kind in Masks._fields:
            check_rate(f"{kind}_dropout", getattr(self, f"{kind}_dropout"))
            check_choice(f"{kind}_sampling", getattr(self, f"{kind}_sampling"), SAMPLINGS)
        check_choice("scaling", scaling, SCALINGS)
        check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
        check_choice("backend", backend, BACKENDS)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | tuple[Tensor, Tensor] | None = None,
        masks: Sequence[Masks] | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor | tuple[Tensor, Tensor]]:
        """Run all layers, as torch.nn does.

        Args:
            input: ``(time, batch, input)``, ``(batch, time, input)`` with ``batch_first``,
                ``(time, input)``, or a PackedSequence.
            hx: the initial state, zeros if None; ``(layers * directions, batch, hidden)``, without the
                batch for unbatched input; for an LSTM a tuple of two, h and c.
            masks: dropout masks to use instead of drawing them (and in evaluation, too), one
                :class:`~rnndrop_plugin.ops.Masks` for each layer and direction, in the order of ``hx``.
                They are indexed by the example's place in the caller's batch and by real time, the
                batch being padded to its longest sequence.

        Returns:
            The output and the final state, in the form of ``input`` and ``hx``.

        Raises:
            RuntimeError, ValueError or TypeError: an input or ``hx`` of the wrong shape or dtype, or not
                in the form above, as torch.nn does; ValueError also for masks that do not fit.
        """
        if masks is None and self.backend in ("auto", "vendor") and self._is_torchs():
            if self.backend == "vendor" or not self._trains_faster_compiled(input):
                return super().forward(input, hx)
        self._update_flat_weights()  # what check_input compares with, stale after functional_call or a parametrization
        sequence, lengths, state = self._unpack(input, hx)
        time, batch, _ = sequence.shape
        if masks is None:
            masks = self._draw_masks(time, batch, sequence.device)
        elif len(masks) != len(self._all_weights) or not all(isinstance(m, Masks) for m in masks):
            raise ValueError(
                f"masks must be {len(self._all_weights)} Masks, one for each layer and direction, "
                f"got {', '.join(type(m).__name__ for m in masks) or 'none'}"
            )

        directions = 2 if self.bidirectional else 1
        final_states = []
        for layer in range(self.num_layers):
            if layer > 0:
                sequence = F.dropout(sequence, self.dropout, self.training)
            outputs = []
            for reverse in range(directions):
                k = layer * directions + reverse
                output, final_state = recurrence(
                    self.cell,
                    sequence,
                    tuple(s[k] for s in state),
                    Weights(*(getattr(self, name) for name in self._all_weights[k])),
                    masks[k],
                    nonlinearity=self.nonlinearity,
                    lengths=lengths,
                    reverse=bool(reverse),
                    backend=self.backend,
                )
                outputs.append(output)
                final_states.append(final_state)
            sequence = torch.cat(outputs, dim=2) if self.bidirectional else outputs[0]
        state = tuple(torch.stack(s) for s in zip(*final_states, strict=True))
        return self._repack(sequence, state, input)

    def _is_torchs(self) -> bool:
        """Whether torch.nn's forward computes the same function: its cell, and nothing dropped or scaled."""
        identity = not self.training and self.scaling == "inverted"
        return identity or not (self.update_dropout or self.hidden_dropout or self.cell_dropout)

    def _trains_faster_compiled(self, input) -> bool:
        if not self.training or isinstance(input, PackedSequence) or input.dim() != 3:
            return False
        return compiled_trains_faster(input.size(0 if self.batch_first else 1), input.device, input.dtype)

    def _draw_masks(self, time: int, batch: int, device: torch.device) -> list[Masks]:
        return [
            Masks(
                *(
                    draw_mask(
                        getattr(self, f"{kind}_dropout"),
                        time,
                        batch,
                        self.hidden_size,
                        sampling=getattr(self, f"{kind}_sampling"),
                        scaling=self.scaling,
                        training=self.training,
                        device=device,
                    )
                    for kind in Masks._fields
                )
            )
            for _ in self._all_weights
        ]

    def _unpack(self, input, hx) -> tuple[Tensor, Tensor | None, State]:
        """The input as ``(time, batch, input)``, its lengths, and the state as a tuple, in the caller's order."""
        lengths = None
        if isinstance(input, PackedSequence):
            self.check_input(input.data, input.batch_sizes)
            sequence, lengths = pad_packed_sequence(input)
            lengths = lengths.to(sequence.device)
            unbatched = False
        else:
            if input.dim() not in (2, 3):
                raise ValueError(f"expected input to be 2D or 3D, got {input.dim()}D")
            unbatched = input.dim() == 2
            sequence = input.unsqueeze(1) if unbatched else input.transpose(0, 1) if self.batch_first else input
            self.check_input(sequence, None)
        if sequence.size(0) == 0:
            raise RuntimeError("expected a sequence of at least one step")

        size = (len(self._all_weights), sequence.size(1), self.hidden_size)
        if hx is None:
            return sequence, lengths, tuple(sequence.new_zeros(size) for _ in range(self._states))
        state = (hx,) if self._states == 1 or isinstance(hx, Tensor) else tuple(hx)
        if len(state) != self._states or not all(isinstance(s, Tensor) for s in state):
            form = "a tensor" if self._states == 1 else "a tuple of two tensors, h and c"
            raise TypeError(f"hx must be {form}, got {', '.join(type(s).__name__ for s in state)}")
        for s in state:
            self.check_hidden_size(s, (size[0], size[2]) if unbatched else size)
            if s.dtype != sequence.dtype and not in_autocast(s.device.type):
                raise ValueError(f"hx is of {s.dtype}, the input of {sequence.dtype}: they must be the same")
        return sequence, lengths, tuple(s.unsqueeze(1) for s in state) if unbatched else state

    def _repack(self, sequence: Tensor, state: State, input) -> tuple:
        """Undo ``_unpack`` for the output and the final state."""
        if isinstance(input, PackedSequence):
            if input.sorted_indices is not None:
                sequence = sequence.index_select(1, input.sorted_indices)
            batch = torch.arange(sequence.size(1))
            running = batch < input.batch_sizes.unsqueeze(1)
            sequence = input._replace(data=sequence[running.to(sequence.device)])
        elif input.dim() == 2:
            sequence = sequence.squeeze(1)
            state = tuple(s.squeeze(1) for s in state)
        elif self.batch_first:
            sequence = sequence.transpose(0, 1)
        return sequence, state if self._states > 1 else state[0]

    @property
    def _states(self) -> int:
        return 2 if self.cell == "lstm" else 1

    def extra_repr(self) -> str:
        parts = [super().extra_repr()]
        for kind in Masks._fields:
            if rate := getattr(self, f"{kind}_dropout"):
                parts.append(f"{kind}_dropout={rate} per {getattr(self, f'{kind}_sampling')}")
        if self.scaling != "inverted":
            parts.append(f"scaling={self.scaling}")
        if self.nonlinearity != "tanh":
            parts.append(f"nonlinearity={self.nonlinearity}")
        if self.backend != "auto":
            parts.append(f"backend={self.backend}")
        return ", ".join(parts)


class LSTM(_RecurrentDropout, nn.LSTM):
    r"""A drop-in for torch.nn.LSTM with recurrent dropout (Semeniuta et al. 2016, Eq. 4 to 9).

    .. math::
        i, f, o &= \sigma(W_\ast x_t + U_\ast d_h(h_{t-1}) + b_\ast) \\
        g &= \phi(W_g x_t + U_g d_h(h_{t-1}) + b_g) \\
        c_t &= d_c(f * c_{t-1} + i * d_u(g)) \\
        h_t &= o * \phi(c_t)

    Parameters have torch.nn.LSTM's names, shapes and gate order (i, f, g, o), so state dicts load both
    ways. Where nothing is dropped torch's own kernel runs, or in training on a CPU the compiled one where that
    is faster; ``backend="vendor"`` always takes torch's.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype:
            as in torch.nn.LSTM; ``dropout`` is the forward dropout between layers.
        update_dropout: the rate of d_u (this paper's), in [0, 1).
        hidden_dropout: the rate of d_h (Gal's), in [0, 1).
        cell_dropout: the rate of d_c (Moon et al.'s), in [0, 1).
        sampling: ``"step"`` draws masks for each step, ``"sequence"`` once for all steps of a call.
        update_sampling, hidden_sampling, cell_sampling: the same for one of them.
        scaling: ``"inverted"`` divides by 1-p in training, and evaluation is torch.nn.LSTM's;
            ``"expected"`` multiplies by 1-p in evaluation (Eq. 3). They are two different models.
        nonlinearity: ``"tanh"`` or ``"relu"``, the function phi.
        backend: which implementation runs, see :data:`rnndrop_plugin.ops.BACKENDS`.

    Raises:
        ValueError: a rate outside [0, 1), an unknown choice, or ``proj_size``.
    """

    cell = "lstm"

    def _is_torchs(self) -> bool:
        return self.nonlinearity == "tanh" and super()._is_torchs()


class GRU(_RecurrentDropout, nn.GRU):
    r"""A GRU with recurrent dropout (Semeniuta et al. 2016, Eq. 10 to 13).

    .. math::
        r, z &= \sigma(W_\ast x_t + b_{i\ast} + U_\ast d_h(h_{t-1}) + b_{h\ast}) \\
        n &= \phi(W_n x_t + b_{in} + U_n (r * d_h(h_{t-1})) + b_{hn}) \\
        h_t &= d_c(z * h_{t-1} + (1 - z) * d_u(n))

    This z is 1 minus the paper's, as in torch.nn.GRU. With ``reset_after`` the candidate is
    torch.nn.GRU's and cuDNN's, :math:`n = \phi(W_n x_t + b_{in} + r * (U_n d_h(h_{t-1}) + b_{hn}))`, and
    state dicts load both ways; the paper's form keeps a flag in its own, and loading one form's state
    dict into the other is refused.

    Args:
        reset_after: False for the paper's candidate, True for torch.nn.GRU's.

    The other arguments are those of :class:`LSTM`; ``cell_dropout`` drops the new h.
    """

    def __init__(self, *args: Any, reset_after: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cell = "gru_reset_after" if reset_after else "gru"
        if not reset_after:
            # Only its presence counts. A float survives what is done to whole state dicts (averaging, EMA).
            self.register_buffer("reset_before", self.weight_hh_l0.detach().new_ones(()))

    def _is_torchs(self) -> bool:
        return self.cell == "gru_reset_after" and self.nonlinearity == "tanh" and super()._is_torchs()

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        forms = {True: "the paper's form (reset_after=False)", False: "torch.nn.GRU's form (reset_after=True)"}
        saved = f"{prefix}reset_before" in state_dict
        own = self.cell == "gru"
        holds_gru = saved or any(prefix + name in state_dict for name in self._flat_weights_names)
        if holds_gru and saved != own:
            name = prefix.rstrip(".") or "GRU"
            errors.append(f"{name}: the state dict is of a GRU of {forms[saved]}, the module of {forms[own]}")
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def extra_repr(self) -> str:
        """The sizes and what is not at its default, as torch.nn shows it."""
        return super().extra_repr() + (", reset_after=True" if self.cell == "gru_reset_after" else "")


class RNN(_RecurrentDropout, nn.RNN):
    r"""A vanilla RNN with dropout of the hidden state (Semeniuta et al. 2016, Eq. 1 and 2).

    .. math:: h_t = \phi(W x_t + U d_h(h_{t-1}) + b)

    A drop-in for torch.nn.RNN (``nonlinearity`` by name only). It overwrites its state at every step, so
    there is no update and no cell to drop: the only recurrent dropout is ``hidden_dropout``. The other
    arguments are those of :class:`LSTM`.
    """

    cell = "rnn"

    def __init__(self, *args: Any, nonlinearity: str = "tanh", **kwargs: Any) -> None:
        super().__init__(*args, nonlinearity=nonlinearity, **kwargs)
        self.mode = f"RNN_{nonlinearity.upper()}"  # which of its kernels torch.nn.RNN's forward calls
        for kind in ("update", "cell"):
            if getattr(self, f"{kind}_dropout"):
                raise ArgumentError(f"{kind}_dropout", f"must be 0: an RNN has no {kind} to drop (Eq. 2)")

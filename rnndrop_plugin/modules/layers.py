"""LSTM, GRU and RNN layers with recurrent dropout, otherwise used like those of torch.nn."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnndrop_plugin.modules.dropout import dropout
from rnndrop_plugin.modules.recurrent_dropout import GRUForm, RecurrentDropout
from rnndrop_plugin.ops import NONLINEARITIES, SAMPLINGS, Masks, State, Weights, choose_backend, draw_mask, recurrence
from rnndrop_plugin.ops.checks import check_choice, check_rate
from rnndrop_plugin.ops.context import computed_dtype, in_autocast
from rnndrop_plugin.ops.gradients import gradient_is_wanted
from rnndrop_plugin.ops.packing import pack_sorted, pad_sorted


class _Layer(RecurrentDropout, nn.RNNBase):
    """What LSTM, GRU and RNN share. The parameters, their names and their checks are torch.nn's.

    They do not inherit from torch.nn.LSTM, GRU and RNN, because torch.compile breaks its graph at instances of those.
    """

    torch_nn: type[nn.RNNBase]  # its forward pass runs where nothing is dropped

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
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
        weight_dropout: float = 0.0,
        dropout_sampling: str = "step",
    ) -> None:
        if proj_size != 0:
            raise ValueError("proj_size is not supported: the paper's cells have no projection")
        check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
        super().__init__(
            self.torch_nn.__name__ if self.cell != "rnn" else f"RNN_{nonlinearity.upper()}",  # as torch.nn names it
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
            update_dropout=update_dropout,
            hidden_dropout=hidden_dropout,
            cell_dropout=cell_dropout,
            sampling=sampling,
            update_sampling=update_sampling,
            hidden_sampling=hidden_sampling,
            cell_sampling=cell_sampling,
            scaling=scaling,
            nonlinearity=nonlinearity,
            backend=backend,
        )
        check_choice("dropout_sampling", dropout_sampling, SAMPLINGS)
        if dropout_sampling == "sequence":  # torch.nn's dropout, with a mask for each step, also takes a rate of 1
            check_rate("dropout", dropout)
        self.weight_dropout = check_rate("weight_dropout", weight_dropout)
        self.dropout_sampling = dropout_sampling

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
            masks: dropout masks to use instead of drawing them, in evaluation as well: one
                :class:`~rnndrop_plugin.ops.Masks` for each layer and direction, in the order of ``hx``.
                They are indexed by the example's place in the caller's batch and by real time, as if the
                batch were padded to its longest sequence. The masks of weight dropout and forward dropout
                are not among them and are still drawn.

        Returns:
            The output and the final state, in the form of ``input`` and ``hx``.

        Raises:
            RuntimeError, ValueError or TypeError: an input or ``hx`` of the wrong shape or dtype, or not
                in the form above, as torch.nn does; ValueError also for masks that do not fit.
        """
        run = self._run
        if torch.compiler.is_compiling() and isinstance(input, PackedSequence):
            run = torch.compiler.disable(run)  # torch.compile cannot follow the packing of sequences
        return run(input, hx, masks)

    def _run(self, input, hx, masks):
        if not torch.compiler.is_compiling():
            self._update_flat_weights()  # stale after functional_call or a parametrization
            # torch.nn cannot differentiate cuDNN's evaluation mode; our own call tells cuDNN that it is training.
            differentiable = self.training or not self.weight_hh_l0.is_cuda or not torch.is_grad_enabled()
            dropped = masks is not None or self._drops_or_scales()
            if differentiable and not dropped and self._plan(input) == "vendor":
                if hx is not None:
                    self._as_state(hx)  # torch.nn.LSTM ends in an IndexError for a single tensor
                return self.torch_nn.forward(self, input, hx)
        sequence, lengths, state = self._unpack(input, hx)
        time, batch, _ = sequence.shape
        if masks is None:
            masks = self.draw_masks(time, batch)
        elif len(masks) != len(self._all_weights) or not all(isinstance(m, Masks) for m in masks):
            raise ValueError(
                f"masks must be {len(self._all_weights)} Masks, one for each layer and direction, "
                f"got {', '.join(type(m).__name__ for m in masks) or 'none'}"
            )
        elif isinstance(input, PackedSequence) and input.sorted_indices is not None:
            masks = [mask.of_examples(input.sorted_indices) for mask in masks]

        directions = 2 if self.bidirectional else 1
        final_states = []
        for layer in range(self.num_layers):
            if layer > 0:
                sequence = dropout(sequence, self.dropout, self.training, self.dropout_sampling)
            outputs = []
            for reverse in range(directions):
                k = layer * directions + reverse
                output, final_state = recurrence(
                    self.cell,
                    sequence,
                    tuple(s[k] for s in state),
                    self.draw_weights(k),
                    masks[k],
                    nonlinearity=self.nonlinearity,
                    lengths=lengths,
                    reverse=bool(reverse),
                    backend=self.backend,
                )
                outputs.append(output)
                final_states.append(final_state)
            sequence = torch.cat(outputs, dim=2) if self.bidirectional else outputs[0]
        one = len(final_states) == 1  # a single state needs no copy by torch.stack
        state = tuple(s[0].unsqueeze(0) if one else torch.stack(s) for s in zip(*final_states, strict=True))
        return self._repack(sequence, state, input)

    def draw_masks(self, time: int, batch: int) -> list[Masks]:
        """Draw ``masks`` for :meth:`forward`, for ``time`` steps over ``batch`` sequences.

        In evaluation nothing is drawn, and the masks at most scale, as ``scaling`` says.
        """
        return [self._draw_masks(time, batch, self.weight_hh_l0.device) for _ in self._all_weights]

    def draw_weights(self, k: int) -> Weights:
        """The weights of layer and direction ``k``, in the order of ``hx``; weight dropout is drawn at each call."""
        weights = Weights(*(getattr(self, name) for name in self._all_weights[k]))
        if not self.weight_dropout:
            return weights
        mask = draw_mask(
            self.weight_dropout,
            1,
            *weights.hh.shape,
            sampling="sequence",
            scaling=self.scaling,
            training=self.training,
            device=weights.hh.device,
        )
        return weights._replace(hh=mask(weights.hh))

    def _drops_or_scales(self) -> bool:
        rates = self.update_dropout, self.hidden_dropout, self.cell_dropout, self.weight_dropout
        # cuDNN draws dropout between layers with its own generator, which waits for the GPU after each seeding.
        own = self.dropout_sampling == "sequence" or self.weight_hh_l0.is_cuda
        between = own and self.training and self.num_layers > 1 and self.dropout > 0
        return between or (any(rates) and (self.training or self.scaling == "expected"))

    def _plan(self, input: Tensor | PackedSequence) -> str:
        """The backend that runs a call that drops nothing."""
        packed = isinstance(input, PackedSequence)
        batched = not packed and input.dim() == 3
        time_dim = 1 if batched and self.batch_first else 0
        data = input.data if packed else input
        return choose_backend(
            self.cell,
            nonlinearity=self.nonlinearity,
            device=data.device,
            dtype=computed_dtype(data),
            backend=self.backend,
            time=len(input.batch_sizes) if packed else input.size(time_dim),
            batch=input.size(1 - time_dim) if batched else None,  # a packed batch has fewer rows at later steps
            hidden=self.hidden_size,
            lengths=packed,
            training=self.training and gradient_is_wanted((data, *self._flat_weights)),
        )

    def _unpack(self, input, hx) -> tuple[Tensor, Tensor | None, State]:
        """The input as ``(time, batch, input)``, its lengths, and the state as a tuple.

        A packed batch stays in its own order, the longest sequence first: the host knows its lengths only in this one.
        """
        lengths = None
        if isinstance(input, PackedSequence):
            self.check_input(input.data, input.batch_sizes)
            sequence, lengths = pad_sorted(input)
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
            return sequence, lengths, self._zero_state(*size, like=sequence)
        state = self._as_state(hx)
        for s in state:
            self.check_hidden_size(s, (size[0], size[2]) if unbatched else size)
            if s.dtype != sequence.dtype and not in_autocast(s.device.type):
                raise ValueError(f"hx is of {s.dtype}, the input of {sequence.dtype}: they must be the same")
        if unbatched:
            state = tuple(s.unsqueeze(1) for s in state)
        elif isinstance(input, PackedSequence) and input.sorted_indices is not None:
            state = tuple(s.index_select(1, input.sorted_indices) for s in state)
        return sequence, lengths, state

    def _repack(self, sequence: Tensor, state: State, input) -> tuple:
        """Undo ``_unpack`` for the output and the final state."""
        if isinstance(input, PackedSequence):
            if input.unsorted_indices is not None:
                state = tuple(s.index_select(1, input.unsorted_indices) for s in state)
            sequence = pack_sorted(sequence, input)
        elif input.dim() == 2:
            sequence = sequence.squeeze(1)
            state = tuple(s.squeeze(1) for s in state)
        elif self.batch_first:
            sequence = sequence.transpose(0, 1)
        return sequence, state if self.cell == "lstm" else state[0]

    def extra_repr(self) -> str:
        """The sizes and the settings that are not at their defaults, as torch.nn shows them."""
        parts = [super().extra_repr()]
        if self.weight_dropout:
            parts.append(f"weight_dropout={self.weight_dropout}")
        if self.dropout_sampling != "step":
            parts.append(f"dropout_sampling={self.dropout_sampling}")
        return ", ".join(parts)


class LSTM(_Layer):
    r"""A drop-in for torch.nn.LSTM with recurrent dropout (Semeniuta et al. 2016, Eq. 4 to 9).

    .. math::
        i, f, o &= \sigma(W_\ast x_t + U_\ast d_h(h_{t-1}) + b_\ast) \\
        g &= \phi(W_g x_t + U_g d_h(h_{t-1}) + b_g) \\
        c_t &= d_c(f * c_{t-1} + i * d_u(g)) \\
        h_t &= o * \phi(c_t)

    where :math:`d_u`, :math:`d_h` and :math:`d_c` drop units at random, each with its own rate, 0 by default.
    Parameters have torch.nn.LSTM's names, shapes and gate order (i, f, g, o), so state dicts load both
    ways. Where nothing is dropped torch's own kernel runs, or one of ours where that is faster;
    ``backend="vendor"`` always takes torch's.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype:
            as in torch.nn.LSTM; ``dropout`` is the forward dropout between layers, and ``proj_size`` must be 0.
        update_dropout: the rate of d_u (this paper's), in [0, 1).
        hidden_dropout: the rate of d_h (Gal's), in [0, 1).
        cell_dropout: the rate of d_c (Moon et al.'s), in [0, 1).
        sampling: ``"step"`` draws masks for each step, ``"sequence"`` once for all steps of a call.
        update_sampling, hidden_sampling, cell_sampling: ``sampling`` for one kind of dropout.
        scaling: ``"inverted"`` divides by 1-p in training, and evaluation is torch.nn.LSTM's;
            ``"expected"`` multiplies by 1-p in evaluation (Eq. 3). They are two different models.
        nonlinearity: ``"tanh"`` or ``"relu"``, the function phi.
        backend: which implementation runs, see :data:`rnndrop_plugin.ops.BACKENDS`.
        weight_dropout: the rate of dropping single weights of U, in [0, 1), the same ones at all steps of a call
            (DropConnect, Wan et al. 2013; for recurrent matrices Merity et al. 2018, section 2), scaled as units are.
        dropout_sampling: ``"sequence"`` for forward dropout between layers with one mask for all steps; ``dropout``
            must then be below 1.

    Raises:
        ValueError: a rate outside [0, 1), an unknown choice, or ``proj_size``.

    It is called as torch.nn.LSTM is:

    >>> import torch
    >>> from rnndrop_plugin.modules import LSTM
    >>> lstm = LSTM(10, 20, num_layers=2, update_dropout=0.25)
    >>> input = torch.randn(35, 4, 10)  # time, batch, features
    >>> output, (h, c) = lstm(input)
    >>> output.shape, h.shape, c.shape
    (torch.Size([35, 4, 20]), torch.Size([2, 4, 20]), torch.Size([2, 4, 20]))

    In evaluation, with the default scaling, it is torch.nn.LSTM:

    >>> plain = torch.nn.LSTM(10, 20, num_layers=2)
    >>> plain.load_state_dict(lstm.state_dict())
    <All keys matched successfully>
    >>> torch.allclose(lstm.eval()(input)[0], plain(input)[0])
    True

    Kinds of dropout can be combined, and masks can be given instead of drawn:

    >>> lstm = LSTM(10, 20, update_dropout=0.25, hidden_dropout=0.1, hidden_sampling="sequence")
    >>> masks = lstm.draw_masks(time=35, batch=4)
    >>> torch.equal(lstm(input, masks=masks)[0], lstm(input, masks=masks)[0])
    True
    """

    cell = "lstm"
    torch_nn = nn.LSTM
    # nn.LSTM.forward calls these methods of its class.
    check_forward_args, permute_hidden = nn.LSTM.check_forward_args, nn.LSTM.permute_hidden
    get_expected_cell_size = nn.LSTM.get_expected_cell_size


class GRU(GRUForm, _Layer):
    r"""A GRU with recurrent dropout (Semeniuta et al. 2016, Eq. 10 to 13).

    .. math::
        r, z &= \sigma(W_\ast x_t + b_{i\ast} + U_\ast d_h(h_{t-1}) + b_{h\ast}) \\
        n &= \phi(W_n x_t + b_{in} + U_n (r * d_h(h_{t-1})) + b_{hn}) \\
        h_t &= d_c(z * h_{t-1} + (1 - z) * d_u(n))

    This z is 1 minus the paper's, as in torch.nn.GRU. With ``reset_after`` the candidate is
    torch.nn.GRU's and cuDNN's, :math:`n = \phi(W_n x_t + b_{in} + r * (U_n d_h(h_{t-1}) + b_{hn}))`, and
    state dicts load both ways. The state dict of the paper's form contains a flag, and loading one form's
    state dict into the other is refused.

    Args:
        reset_after: False for the paper's candidate, True for torch.nn.GRU's.

    The other arguments are those of :class:`LSTM`; ``cell_dropout`` drops the new h.

    >>> import torch
    >>> from rnndrop_plugin.modules import GRU
    >>> gru = GRU(10, 20, bidirectional=True, update_dropout=0.25)
    >>> output, h = gru(torch.randn(35, 4, 10))
    >>> output.shape, h.shape
    (torch.Size([35, 4, 40]), torch.Size([2, 4, 20]))

    Only torch.nn.GRU's form takes the weights of a torch.nn.GRU:

    >>> GRU(10, 20, reset_after=True).load_state_dict(torch.nn.GRU(10, 20).state_dict())
    <All keys matched successfully>
    """

    torch_nn = nn.GRU


class RNN(_Layer):
    r"""A vanilla RNN with dropout of the hidden state (Semeniuta et al. 2016, Eq. 1 and 2).

    .. math:: h_t = \phi(W x_t + U d_h(h_{t-1}) + b)

    A drop-in for torch.nn.RNN. It overwrites its state at every step, so there is no update and no cell to drop: the
    only recurrent dropout is ``hidden_dropout``. The other arguments are those of :class:`LSTM`.

    >>> import torch
    >>> from torch.nn.utils.rnn import pack_sequence
    >>> from rnndrop_plugin.modules import RNN
    >>> rnn = RNN(10, 20, nonlinearity="relu", hidden_dropout=0.25)
    >>> sequences = pack_sequence([torch.randn(3, 10), torch.randn(5, 10)], enforce_sorted=False)
    >>> output, h = rnn(sequences)
    >>> output.batch_sizes.tolist(), h.shape
    ([2, 2, 2, 1, 1], torch.Size([1, 2, 20]))
    """

    cell = "rnn"
    torch_nn = nn.RNN

    # torch.nn.RNN takes the nonlinearity fourth, before the bias.
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, *args, nonlinearity=nonlinearity, **kwargs)

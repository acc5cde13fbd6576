"""What the layers and the cells share: the keywords of recurrent dropout and the masks drawn from them."""

from typing import Any

import torch
from torch import Tensor, nn

from rnndrop_plugin.ops import BACKENDS, NONLINEARITIES, SAMPLINGS, SCALINGS, Masks, State, draw_mask
from rnndrop_plugin.ops.checks import ArgumentError, check_choice, check_rate


class RecurrentDropout(nn.Module):
    """A base class that takes the keywords of recurrent dropout and passes the others on to torch.nn's class."""

    cell: str  # as ops.recurrence names it
    hidden_size: int

    def __init__(
        self,
        *args: Any,
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
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.update_dropout = check_rate("update_dropout", update_dropout)
        self.hidden_dropout = check_rate("hidden_dropout", hidden_dropout)
        self.cell_dropout = check_rate("cell_dropout", cell_dropout)
        self.update_sampling = update_sampling or sampling
        self.hidden_sampling = hidden_sampling or sampling
        self.cell_sampling = cell_sampling or sampling
        self.scaling = scaling
        self.nonlinearity = nonlinearity
        self.backend = backend
        check_choice("sampling", sampling, SAMPLINGS)
        for kind in Masks._fields:
            check_choice(f"{kind}_sampling", getattr(self, f"{kind}_sampling"), SAMPLINGS)
        check_choice("scaling", scaling, SCALINGS)
        check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
        check_choice("backend", backend, BACKENDS)
        for kind in ("update", "cell"):
            if self.cell == "rnn" and getattr(self, f"{kind}_dropout"):
                raise ArgumentError(f"{kind}_dropout", f"must be 0: an RNN has no {kind} to drop (Eq. 2)")

    def _draw_masks(self, time: int, batch: int, device: torch.device) -> Masks:
        """Draw the masks of one layer and direction; in evaluation they at most scale."""
        masks = {}
        for kind in Masks._fields:
            rate = getattr(self, f"{kind}_dropout")
            if rate:
                masks[kind] = draw_mask(
                    rate,
                    time,
                    batch,
                    self.hidden_size,
                    sampling=getattr(self, f"{kind}_sampling"),
                    scaling=self.scaling,
                    training=self.training,
                    device=device,
                )
        return Masks(**masks)

    def _as_state(self, hx: Any) -> State:
        """The caller's state as a tuple of tensors; TypeError if it has another form."""
        number = 2 if self.cell == "lstm" else 1
        state = (hx,) if number == 1 or isinstance(hx, Tensor) else tuple(hx)
        if len(state) != number or not all(isinstance(s, Tensor) for s in state):
            form = "a tensor" if number == 1 else "a tuple of two tensors, h and c"
            raise TypeError(f"hx must be {form}, got {', '.join(type(s).__name__ for s in state)}")
        return state

    def _zero_state(self, *shape: int, like: Tensor) -> State:
        return (like.new_zeros(shape),) * (2 if self.cell == "lstm" else 1)  # nothing writes to it

    def __prepare_scriptable__(self) -> None:
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}: use torch.compile or torch.export, or trace it "
            'with torch.jit.trace (with backend="reference" where torch.nn has no kernel)'
        )

    def extra_repr(self) -> str:
        """The sizes and the settings that are not at their defaults, as torch.nn shows them."""
        parts = [super().extra_repr()]
        for kind in Masks._fields:
            if rate := getattr(self, f"{kind}_dropout"):
                parts.append(f"{kind}_dropout={rate} per {getattr(self, f'{kind}_sampling')}")
        for name, default in (("scaling", "inverted"), ("nonlinearity", "tanh"), ("backend", "auto")):
            # torch.nn.RNNCell shows the nonlinearity itself
            if (value := getattr(self, name)) != default and f"{name}=" not in parts[0]:
                parts.append(f"{name}={value}")
        return ", ".join(parts)


class GRUForm(RecurrentDropout):
    """The two forms of a GRU, the paper's and torch.nn's. A flag in the state dict distinguishes them."""

    cell = "gru"

    def __init__(self, *args: Any, reset_after: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cell = "gru_reset_after" if reset_after else "gru"
        if not reset_after:
            # Only its presence counts. It is a float: averaging and EMA compute with every entry of a state dict.
            self.register_buffer("reset_before", next(self.parameters()).detach().new_ones(()))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        forms = {True: "the paper's form (reset_after=False)", False: "torch.nn.GRU's form (reset_after=True)"}
        saved = f"{prefix}reset_before" in state_dict
        own = self.cell == "gru"
        holds_gru = saved or any(key.startswith((f"{prefix}weight_", f"{prefix}bias_")) for key in state_dict)
        if holds_gru and saved != own:
            name = prefix.rstrip(".") or type(self).__name__
            errors.append(f"{name}: the state dict is from a GRU of {forms[saved]}, but the module is of {forms[own]}")
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def extra_repr(self) -> str:
        """The sizes and the settings that are not at their defaults, as torch.nn shows them."""
        return super().extra_repr() + (", reset_after=True" if self.cell == "gru_reset_after" else "")

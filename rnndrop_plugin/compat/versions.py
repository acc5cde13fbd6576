"""What fairseq 0.12 needs to run on today's torch, numpy and hydra."""

import logging
import os
import types
import warnings

import numpy as np
import torch
from fairseq import utils
from fairseq.data.indexed_dataset import MMapIndexedDataset

SILENCED_WARNINGS = (
    "'pin_memory' argument is set as true but no accelerator",
    r"`torch\.cuda\.amp\.autocast\(args",
    r"hydra\.experimental\.",
    r"\nThe version_base parameter is not specified",
    r"In '.*': Usage of deprecated keyword in package header",
    r"\n'config' is validated against ConfigStore schema",
    r"\nThe strict flag in the compose API is deprecated",
)


def silence_warnings() -> None:
    """Silence warnings about fairseq's use of torch and hydra, which its users cannot change.

    They come from iterators.py and fairseq_task.py, and from dataclass/utils.py with the YAML files in config/.
    """
    for message in SILENCED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def restore_numpy_compat() -> None:
    """numpy 2 has no ``np.compat.long``, which fairseq/data/token_block_dataset.py uses (fairseq-interactive)."""
    if not hasattr(np, "compat"):
        np.compat = types.SimpleNamespace(long=int)


def get_buckets(sizes, num_buckets: int) -> np.ndarray:
    """fairseq/data/data_utils.py, get_buckets (--num-batch-buckets), with numpy 2's keyword."""
    return np.unique(np.percentile(sizes, np.linspace(0, 100, num_buckets + 1), method="lower")[1:])


def quiet_damaged_datasets() -> None:
    """fairseq/data/indexed_dataset.py: if a file is damaged, __init__ fails, and then __del__ prints another error."""
    for cls in (MMapIndexedDataset, MMapIndexedDataset.Index):

        def close(dataset, _close=cls.__del__):
            if hasattr(dataset, "_bin_buffer_mmap"):
                _close(dataset)

        cls.__del__ = close


def restore_log_level() -> None:
    """fairseq/models/wav2vec/wav2vec2_classification.py sets the root logger to the level DEBUG. This affects the
    commands that have not configured it before: fairseq-eval-lm, -generate and -interactive."""
    if logging.getLogger().level == logging.DEBUG:
        logging.getLogger().setLevel(os.environ.get("LOGLEVEL", "INFO").upper())


class SeedGenerators(utils.set_torch_seed):
    """fairseq/utils.py, set_torch_seed: fairseq seeds at every update. For each kind of accelerator that is missing,
    torch.manual_seed formats the call stack and keeps it (_lazy_call in torch/cuda, xpu and mtia). That is a third of
    an update's cost besides its arithmetic. So here only the generators that fairseq draws from are seeded: those of
    the CPU and of all CUDA devices. On a TPU everything is left to fairseq.
    """

    def __init__(self, seed: int):
        if utils.xm is not None:
            super().__init__(seed)
            return
        self.rng_state = utils.get_rng_state()  # this initialises CUDA, if there is a GPU
        for generator in (torch.default_generator, *torch.cuda.default_generators):
            generator.manual_seed(seed)

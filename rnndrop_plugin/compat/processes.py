"""Several processes: that they train together, and drop other units each."""

import os

import torch
from fairseq import utils
from fairseq.trainer import Trainer

from rnndrop_plugin.errors import InputError


def use_one_process_on_a_cpu(cfg) -> None:
    """fairseq/dataclass/configs.py: the default of --distributed-world-size is the number of GPUs, with --cpu, too, and
    a model on a CPU cannot be trained by a process for each of them."""
    if cfg.common.cpu and 1 < cfg.distributed_training.distributed_world_size == torch.cuda.device_count():
        cfg.distributed_training.distributed_world_size = cfg.distributed_training.distributed_num_procs = 1


def check_processes(cfg) -> None:
    """fairseq/distributed/utils.py, infer_init_method, asks for GPUs: without them torchrun's processes train a model
    each, in the same folder, and other spellings fail or train nothing. --find-unused-parameters lets torch's
    DistributedDataParallel mark parameters that the model's forward pass does not reach as ready, the output layer
    among them, which fails when their gradients come.

    Raises:
        InputError: the processes would not train together.
    """
    crf = getattr(getattr(cfg, "model", None), "crf", False)
    outside = crf or getattr(cfg.criterion, "_name", None) == "rnndrop_cross_entropy"
    cfg = cfg.distributed_training
    torch_ddp = cfg.distributed_world_size > 1 and cfg.ddp_backend in ("c10d", "pytorch_ddp")
    if torch_ddp and cfg.find_unused_parameters and outside:
        raise InputError(
            "--find-unused-parameters does not go with rnndrop_cross_entropy and --crf, whose losses use parameters "
            "outside of the model's forward pass: leave it out, or add --ddp-backend legacy_ddp"
        )
    launched = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    processes = max(launched, cfg.distributed_world_size)
    if processes == 1 or cfg.distributed_no_spawn and cfg.distributed_world_size > 1:
        return
    if not torch.cuda.is_available():
        raise InputError(
            f"{processes} processes do not train together here, where there is no GPU: "
            f"use rnndrop train-cpu --processes {processes}"
        )
    if cfg.distributed_world_size == 1:  # torchrun with several GPUs sets it, with one on each machine not
        raise InputError(f"each of {processes} processes would train alone: add --distributed-world-size {processes}")


def seed_each_process(trainer: Trainer) -> None:
    """fairseq/trainer.py, Trainer._set_seed, seeds the processes alike at every update: all would drop the same
    units, each in its own rows. The first process keeps fairseq's seed. (A CPU's generator reads a seed modulo
    2**32, and multiples of 2**32 over the golden ratio stay as far apart there as can be.)
    """
    seed = trainer.cfg.common.seed + trainer.get_num_updates()
    utils.set_torch_seed(seed + trainer.data_parallel_rank * 0x9E3779B9)

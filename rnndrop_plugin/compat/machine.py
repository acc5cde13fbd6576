"""Checks before training begins: whether the machine and the processes can do what the flags ask for."""

import functools
import logging
import os

import torch
from fairseq import utils
from fairseq.trainer import Trainer

from rnndrop_plugin.errors import InputError
from rnndrop_plugin.ops.recurrence.dispatch import ONLY_ON

logger = logging.getLogger(__name__)

upstream_init = Trainer.__init__


@functools.wraps(upstream_init)
def init_trainer(trainer, cfg, task, *args, **kwargs):
    """fairseq/trainer.py, Trainer.__init__: every training calls it, while the first job of fairseq-hydra-train imports
    the plugin only after call_main.

    Raises:
        InputError: see the checks.
    """
    check_device(cfg)
    check_wrapped_optimizer(cfg)
    check_graph(cfg)
    check_processes(cfg)
    if cfg.common.amp and getattr(task, "carries_state", False):
        cfg.common.amp_batch_retries = 0  # a retry of a batch would start from the state at this batch's own end
    upstream_init(trainer, cfg, task, *args, **kwargs)


def has_gpu(cfg) -> bool:
    """Whether the training uses a GPU."""
    return torch.cuda.is_available() and not cfg.common.cpu


def check_device(cfg) -> None:
    """fairseq/trainer.py: without torch_xla --tpu ends in an AttributeError. Without a GPU --fp16 fails within torch,
    and --amp trains in single precision. A backend for another device would fail at the first update.

    Raises:
        InputError: the machine lacks what a flag asks for.
    """
    if cfg.common.tpu and utils.xm is None:
        raise InputError("--tpu asks for a TPU, and torch_xla is not installed")
    on_gpu = has_gpu(cfg)
    if not on_gpu:
        if cfg.common.fp16:
            raise InputError("--fp16 needs a GPU, and there is none (or --cpu is given); --bf16 does not")
        if cfg.common.amp:
            logger.warning("--amp has no effect without a GPU: the training is in single precision")
    backend = getattr(cfg.model, "recurrent_backend", None)
    device = ONLY_ON.get(backend)
    if device == "cuda" and not on_gpu:
        raise InputError(f"--recurrent-backend {backend} needs a GPU, and there is none (or --cpu is given)")
    if device == "cpu" and on_gpu:
        raise InputError(f"--recurrent-backend {backend} is for a CPU, and there is a GPU: add --cpu, or leave it out")


def check_wrapped_optimizer(cfg) -> None:
    """fairseq/trainer.py, Trainer._build_optimizer: in mixed precision and with --use-bmuf fairseq wraps the optimizer.
    Its averages would then never be used.

    Raises:
        InputError: the optimizer does not go with these flags.
    """
    wrapped = cfg.common.fp16 or cfg.common.bf16 or cfg.common.amp or cfg.optimization.use_bmuf
    if wrapped and getattr(cfg.optimizer, "_name", None) == "rnndrop_asgd":
        raise InputError(
            "--optimizer rnndrop_asgd averages parameters of float32: drop --fp16, --bf16, --amp and --use-bmuf"
        )


def check_graph(cfg) -> None:
    """Check that the machine and the other flags allow --cuda-graph.

    Raises:
        InputError: --cuda-graph does not go with the machine or with other flags.
    """
    if not getattr(cfg.task, "cuda_graph", False):
        return
    if not has_gpu(cfg):
        raise InputError("--cuda-graph needs a GPU, and there is none (or --cpu is given)")
    if cfg.common.fp16 or cfg.common.amp:
        raise InputError("--cuda-graph is for float32 and bfloat16 (--bf16), whose losses are not scaled")
    if cfg.distributed_training.distributed_world_size > 1:
        raise InputError("--cuda-graph is for one process (--distributed-world-size 1)")


def use_one_process_on_a_cpu(cfg) -> None:
    """fairseq/dataclass/configs.py: the default of --distributed-world-size is the number of GPUs, even with --cpu. But
    a model on a CPU cannot be trained with one process per GPU."""
    if cfg.common.cpu and 1 < cfg.distributed_training.distributed_world_size == torch.cuda.device_count():
        cfg.distributed_training.distributed_world_size = cfg.distributed_training.distributed_num_procs = 1


def check_processes(cfg) -> None:
    """fairseq/distributed/utils.py, infer_init_method, needs GPUs. Without them each of torchrun's processes trains a
    model of its own, all in the same folder, and other ways to start several processes fail or train nothing. With
    --find-unused-parameters torch's DistributedDataParallel marks parameters that the model's forward pass does not
    reach as ready, such as those of the output layer, and fails when their gradients arrive.

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
    if cfg.distributed_world_size == 1:  # under torchrun it is set if a machine has several GPUs, but not for one each
        raise InputError(f"each of {processes} processes would train alone: add --distributed-world-size {processes}")

"""Patches of fairseq 0.12, with one file for each concern. They make it run on today's torch and numpy, make it keep
what our documentation promises, and save time that a small recurrent model would not need. docs/fairseq.md lists them.

Each patch names the place in fairseq that it changes. A test shows that fairseq still needs it; all these tests but one
are in ``tests/compat``.
"""

import functools
import sys
from types import SimpleNamespace

from fairseq import checkpoint_utils, options, utils
from fairseq.data import bucket_pad_length_dataset
from fairseq.dataclass import initialize
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.optim import AMPOptimizer
from fairseq.optim.adam import Adam
from fairseq.optim.fp16_optimizer import _FP16OptimizerMixin, _MemoryEfficientFP16OptimizerMixin
from fairseq.tasks import FairseqTask
from fairseq.tasks.fairseq_task import StatefulContainer
from fairseq.trainer import Trainer
from fairseq_cli import eval_lm, generate

from rnndrop_plugin.compat import (
    adam,
    averaging,
    batches,
    checkpoint_files,
    commands,
    copies,
    embeddings,
    evaluation,
    flags,
    gradients,
    machine,
    precision,
    processes,
    resume,
    training_step,
    versions,
)


@functools.cache
def apply() -> None:
    """Apply every patch, once per process."""
    versions.silence_warnings()
    versions.restore_numpy_compat()
    versions.quiet_damaged_datasets()
    bucket_pad_length_dataset.get_buckets = versions.get_buckets
    utils.set_torch_seed = versions.SeedGenerators

    checkpoint_files.allow_checkpoint_classes()
    checkpoint_utils.load_checkpoint_to_cpu = checkpoint_files.load_checkpoint_to_cpu
    checkpoint_utils.load_ema_from_checkpoint = checkpoint_files.load_average
    checkpoint_utils.torch_persistent_save = checkpoint_files.save_atomically
    PathManager.copy = staticmethod(checkpoint_files.copy_atomically)

    checkpoint_utils.load_checkpoint = resume.load_checkpoint
    checkpoint_utils.save_checkpoint = resume.save_checkpoint

    FairseqTask.get_batch_iterator = batches.get_batch_iterator
    FairseqTask.build_model = embeddings.build_model
    StatefulContainer.__getattr__ = copies.get_attribute
    Trainer._prepare_sample = batches.prepare_sample

    options.parse_args_and_arch = flags.parse_args_and_arch
    initialize.add_defaults = flags.add_defaults
    if "fairseq_cli.train" in sys.modules:  # it has already imported the function under this name
        sys.modules["fairseq_cli.train"].add_defaults = flags.add_defaults
    distributed_utils.call_main = commands.call_main
    generate.main = commands.generate_main
    eval_lm.eval_lm = evaluation.eval_lm
    eval_lm.checkpoint_utils = SimpleNamespace(load_model_ensemble_and_task=evaluation.load_models)

    Trainer.__init__ = machine.init_trainer
    Trainer.begin_epoch = training_step.begin_epoch
    Trainer.train_step = training_step.train_step
    Trainer.state_dict = training_step.state_dict
    Trainer.begin_valid_epoch = averaging.begin_valid_epoch
    Trainer.lr_step = averaging.lr_step
    Trainer._set_seed = processes.seed_each_process

    AMPOptimizer.__init__ = precision.init_amp
    AMPOptimizer.step = precision.step_amp
    AMPOptimizer.state_dict = precision.amp_state_dict
    AMPOptimizer.load_state_dict = precision.load_amp_state_dict
    _FP16OptimizerMixin.state_dict = precision.half_state_dict
    _FP16OptimizerMixin.load_state_dict = precision.load_half_state_dict
    _MemoryEfficientFP16OptimizerMixin.state_dict = precision.memory_efficient_state_dict
    _MemoryEfficientFP16OptimizerMixin.load_state_dict = precision.load_memory_efficient_state_dict
    utils.multi_tensor_l2norm_available = True
    utils.multi_tensor_total_norm = gradients.multi_tensor_total_norm
    Adam.step = adam.step
    Trainer.clip_grad_norm = gradients.clip_grad_norm

"""Which examples are in a batch, and which part of the batch stays on the CPU."""

import functools

from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer

upstream_get_batch_iterator = FairseqTask.get_batch_iterator
upstream_prepare_sample = Trainer._prepare_sample


@functools.wraps(upstream_get_batch_iterator)
def get_batch_iterator(task, dataset, *args, epoch=1, **kwargs):
    """fairseq/tasks/fairseq_task.py draws batches at random and uses the current epoch as the seed. A run draws them
    once, in its first epoch, so a resumed run would get different ones. Here it also draws those of the first epoch.
    """
    own = kwargs.get("disable_iterator_cache") or kwargs.get("update_epoch_batch_itr")  # a new iterator for each epoch
    if own or not task.can_reuse_epoch_itr(dataset) or dataset in task.dataset_to_epoch_iter:
        return upstream_get_batch_iterator(task, dataset, *args, epoch=epoch, **kwargs)
    iterator = upstream_get_batch_iterator(task, dataset, *args, epoch=1, **kwargs)
    iterator.epoch = epoch
    dataset.set_epoch(epoch)
    return iterator


@functools.wraps(upstream_prepare_sample)
def prepare_sample(trainer, sample, *args, **kwargs):
    """fairseq/trainer.py, Trainer._prepare_sample, moves the lengths of sequences to the GPU with the rest of a batch.
    The host has to read them to pack the batch, so it would wait for the GPU at every step. Therefore a model with
    ``lengths_on_host`` gets them on the CPU in training. With torch's DistributedDataParallel, which moves its inputs
    to the GPU by itself, the host still waits."""
    prepared, is_dummy = upstream_prepare_sample(trainer, sample, *args, **kwargs)
    model = trainer.get_model()
    if sample and model.training and getattr(model, "lengths_on_host", False):
        prepared["net_input"]["src_lengths"] = sample["net_input"]["src_lengths"]
    return prepared, is_dummy

"""Which examples make a batch, and what of it stays on the CPU."""

import functools

from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer

upstream_get_batch_iterator = FairseqTask.get_batch_iterator
upstream_prepare_sample = Trainer._prepare_sample


@functools.wraps(upstream_get_batch_iterator)
def get_batch_iterator(task, dataset, *args, epoch=1, **kwargs):
    """fairseq/tasks/fairseq_task.py makes batches at random, seeded by the epoch in which it makes them. A run makes
    them once, in its first epoch, and one that goes on makes other ones: here it makes those of the first epoch.
    """
    own = kwargs.get("disable_iterator_cache") or kwargs.get("update_epoch_batch_itr")  # an iterator for each epoch
    if own or not task.can_reuse_epoch_itr(dataset) or dataset in task.dataset_to_epoch_iter:
        return upstream_get_batch_iterator(task, dataset, *args, epoch=epoch, **kwargs)
    iterator = upstream_get_batch_iterator(task, dataset, *args, epoch=1, **kwargs)
    iterator.epoch = epoch
    dataset.set_epoch(epoch)
    return iterator


@functools.wraps(upstream_prepare_sample)
def prepare_sample(trainer, sample, *args, **kwargs):
    """fairseq/trainer.py, Trainer._prepare_sample, moves the lengths of sequences to the GPU with all else of a batch.
    To pack a batch the host has to read them, and it would wait for the GPU at every step. So in training a model with
    ``lengths_on_host`` gets them on the CPU. torch's DistributedDataParallel moves its inputs to the GPU by itself, and
    there the host still waits for them."""
    prepared, is_dummy = upstream_prepare_sample(trainer, sample, *args, **kwargs)
    model = trainer.get_model()
    if sample and model.training and getattr(model, "lengths_on_host", False):
        prepared["net_input"]["src_lengths"] = sample["net_input"]["src_lengths"]
    return prepared, is_dummy

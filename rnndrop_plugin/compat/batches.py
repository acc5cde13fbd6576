"""Which examples make a batch: FairseqTask.get_batch_iterator."""

import functools

from fairseq.tasks import FairseqTask

upstream = FairseqTask.get_batch_iterator


@functools.wraps(upstream)
def get_batch_iterator(task, dataset, *args, epoch=1, **kwargs):
    """fairseq/tasks/fairseq_task.py makes batches at random, seeded by the epoch in which it makes them. A run makes
    them once, in its first epoch, and one that goes on makes other ones: here it makes those of the first epoch.
    """
    own = kwargs.get("disable_iterator_cache") or kwargs.get("update_epoch_batch_itr")  # an iterator for each epoch
    if own or not task.can_reuse_epoch_itr(dataset) or dataset in task.dataset_to_epoch_iter:
        return upstream(task, dataset, *args, epoch=epoch, **kwargs)
    iterator = upstream(task, dataset, *args, epoch=1, **kwargs)
    iterator.epoch = epoch
    dataset.set_epoch(epoch)
    return iterator

"""Which examples make a batch: FairseqTask.get_batch_iterator."""

import functools

from fairseq.tasks import FairseqTask

upstream = FairseqTask.get_batch_iterator


@functools.wraps(upstream)
def get_batch_iterator(task, dataset, *args, epoch=1, **kwargs):
    """fairseq/tasks/fairseq_task.py makes batches at random, seeded by the epoch in which it makes them. A run makes
    them once, in its first epoch, and one that goes on makes other ones: here it makes those of the first epoch.
    """
    known = dataset in task.dataset_to_epoch_iter
    iterator = upstream(task, dataset, *args, epoch=1, **kwargs)
    if task.dataset_to_epoch_iter.get(dataset) is not iterator:  # each epoch has an iterator of its own
        return upstream(task, dataset, *args, epoch=epoch, **kwargs) if epoch != 1 else iterator
    if not known:
        iterator.epoch = epoch
        dataset.set_epoch(epoch)
    return iterator

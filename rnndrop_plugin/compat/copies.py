"""Copies of a task, and of what holds one: copy.deepcopy and pickle."""

import functools

from fairseq.tasks.fairseq_task import StatefulContainer

upstream_get_attribute = StatefulContainer.__getattr__


@functools.wraps(upstream_get_attribute)
def get_attribute(container, name):
    """fairseq/tasks/fairseq_task.py, StatefulContainer.__getattr__: a copy that is being made has no state yet, and
    looks for it in its state, without end.
    """
    if "_state" not in vars(container):
        raise AttributeError(name)
    return upstream_get_attribute(container, name)

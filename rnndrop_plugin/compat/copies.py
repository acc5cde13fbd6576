"""Copies of a task, or of an object that holds one, by copy.deepcopy and pickle."""

import functools

from fairseq.tasks.fairseq_task import StatefulContainer

upstream_get_attribute = StatefulContainer.__getattr__


@functools.wraps(upstream_get_attribute)
def get_attribute(container, name):
    """fairseq/tasks/fairseq_task.py, StatefulContainer.__getattr__: while a copy is being made, it has no ``_state``
    yet, and would look it up in its own state in an endless recursion.
    """
    if "_state" not in vars(container):
        raise AttributeError(name)
    return upstream_get_attribute(container, name)

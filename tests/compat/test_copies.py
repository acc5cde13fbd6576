import copy
import pickle

import pytest
from fairseq.tasks.fairseq_task import StatefulContainer


def symbols() -> list[str]:
    return ["a", "b"]


def test_fairseq_cannot_copy_the_state_of_a_task(unpatch):
    state = StatefulContainer()
    state.add_factory("dictionary", symbols)
    state.merge_state_dict({"steps": 3})
    for clone in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert clone.steps == 3 and clone.dictionary == ["a", "b"]
        assert not hasattr(clone, "rows")
    unpatch(StatefulContainer, "__getattr__")
    for copied in (copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))):
        with pytest.raises(RecursionError):
            copied(state)

"""The names that users rely on, and what an error calls the flags."""

import pickle

import pytest
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY

import rnndrop_plugin
from rnndrop_plugin.errors import InputError
from rnndrop_plugin.models.config import name_flags
from rnndrop_plugin.ops.checks import check_rate

rnndrop_plugin.register()

FAMILIES = {
    "RecurrentLanguageModel": ("rnndrop", "rnndrop_ptb_word"),
    "RecurrentTagger": ("rnndrop_tagger", "rnndrop_tagger_conll2003", "rnndrop_tagger_conll2003_concat"),
    "RecurrentClassifier": (
        "rnndrop_classifier",
        "rnndrop_classifier_temporal_order",
        "rnndrop_classifier_semeval",
    ),
}
NAMES = {
    f"{cell}_{name}": base for base, names in FAMILIES.items() for name in names for cell in ("lstm", "gru", "rnn")
}
NAMES["lstm_rnndrop_ptb_char"] = "RecurrentLanguageModel"


def test_every_architecture_has_a_class_and_a_configuration_of_its_own():
    """fairseq keeps the configuration on the class, so that two names must not share one."""
    classes = {name: ARCH_MODEL_REGISTRY[name] for name in NAMES}
    assert len(set(classes.values())) == len(NAMES)
    for name, cls in classes.items():
        assert NAMES[name] in [base.__name__ for base in cls.__mro__]
        assert getattr(cls, "__dataclass") is MODEL_DATACLASS_REGISTRY[name]
        assert cls.rnn_class.__name__ == name.split("_")[0].upper()
        assert pickle.loads(pickle.dumps(cls)) is cls


@pytest.mark.parametrize(
    ("flags", "argument", "message"),
    [
        ({}, "update_dropout", "--update-dropout must be in [0, 1), got 2"),
        ({"rate": "update_dropout"}, "rate", "--update-dropout must be in [0, 1), got 2"),
    ],
)
def test_an_argument_is_called_by_its_flag(flags, argument, message):
    with pytest.raises(InputError) as error, name_flags(**flags):
        check_rate(argument, 2)
    assert str(error.value) == message

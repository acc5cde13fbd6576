"""The names that users rely on, and what an error calls the flags."""

import dataclasses
import pickle

import pytest
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
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
NAMES["lstm_rnndrop_ptb_char"] = NAMES["lstm_rnndrop_ptb_word_256"] = "RecurrentLanguageModel"


def test_every_architecture_has_a_class_and_a_configuration_of_its_own():
    """fairseq keeps the configuration on the class, so that two names must not share one."""
    classes = {name: ARCH_MODEL_REGISTRY[name] for name in NAMES}
    assert len(set(classes.values())) == len(NAMES)
    for name, cls in classes.items():
        assert NAMES[name] in [base.__name__ for base in cls.__mro__]
        assert getattr(cls, "__dataclass") is MODEL_DATACLASS_REGISTRY[name]
        assert cls.rnn_class.__name__ == name.split("_")[0].upper()
        assert pickle.loads(pickle.dumps(cls)) is cls
        flags = [flag for flag in dataclasses.fields(MODEL_DATACLASS_REGISTRY[name]) if flag.name != "_name"]
        assert all(flag.metadata.get("help") for flag in flags)


@pytest.mark.parametrize(("flag", "shared"), [("", True), ("--", True), ("--no-", False)])
def test_what_a_preset_turns_on(flag, shared):
    """fairseq's flag would turn it off."""
    name = "share-decoder-input-output-embed"
    given = [f"{flag}{name}"] if flag else []
    arguments = ["data", "--arch", "lstm_rnndrop_ptb_word_256", "--optimizer", "sgd", *given]
    parser = options.get_training_parser()
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, arguments))
    assert cfg.model.share_decoder_input_output_embed is shared


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

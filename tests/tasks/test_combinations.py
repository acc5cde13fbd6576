"""Which tasks, architectures and criteria fit each other: the others are refused in words."""

import copy
import functools
import itertools
import shutil

import pytest
from fairseq import options, tasks
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import MODEL_DATACLASS_REGISTRY
from omegaconf import OmegaConf

import rnndrop_plugin
from rnndrop_plugin.errors import InputError

rnndrop_plugin.register()

LANGUAGE = {"rnndrop_cross_entropy", "cross_entropy", "label_smoothed_cross_entropy"}
OURS = ("rnndrop_cross_entropy", "rnndrop_tagging", "rnndrop_classification")
CRITERIA = (*OURS, "cross_entropy", "label_smoothed_cross_entropy", "adaptive_loss")
FITTING = {
    ("rnndrop_language_modeling", "lstm_rnndrop"): LANGUAGE,
    ("rnndrop_tagging", "lstm_rnndrop_tagger"): {"rnndrop_tagging"},
    ("rnndrop_classification", "lstm_rnndrop_classifier"): {"rnndrop_classification"},
    ("translation", "lstm_rnndrop_seq2seq"): LANGUAGE,
    ("language_modeling", "lstm_lm"): LANGUAGE,  # fairseq's own, for which our cross entropy does
    ("translation", "lstm"): LANGUAGE,
}
TASKS, ARCHITECTURES = (sorted({pair[i] for pair in FITTING}) for i in (0, 1))
PAIRS = [
    (task, arch)
    for task, arch in itertools.product(TASKS, ARCHITECTURES)
    if (task, arch) in FITTING or "rnndrop" in task + arch
]


@pytest.fixture(scope="module")
def data(tagging_data, stream_data, tmp_path_factory):
    """A folder that all tasks can read."""
    folder = shutil.copytree(stream_data, tmp_path_factory.mktemp("all") / "data")
    shutil.copytree(tagging_data, folder, dirs_exist_ok=True)
    for language in ("de", "en"):
        shutil.copy(folder / "dict.txt", folder / f"dict.{language}.txt")
        for split, ending in itertools.product(("train", "valid"), ("bin", "idx")):
            shutil.copy(folder / f"{split}.{ending}", folder / f"{split}.de-en.{language}.{ending}")
    return folder


@pytest.fixture(scope="module")
def configuration(data):
    """The configuration of a task, an architecture and a criterion. Flags are parsed once a task, which takes long."""

    @functools.cache
    def parse(task, arch):
        flags = ("--task", task, "--arch", arch, "--criterion", "cross_entropy", "--optimizer", "sgd", "--lr", "1")
        parser = options.get_training_parser(task)
        return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, [str(data), *flags]))

    def configuration(task, arch, criterion):
        own = arch if (task, arch) in FITTING else next(other for name, other in FITTING if name == task)
        cfg = copy.deepcopy(parse(task, own))
        OmegaConf.set_struct(cfg, False)
        if arch != own:
            model = MODEL_DATACLASS_REGISTRY.get(arch)
            cfg.model = OmegaConf.merge(OmegaConf.structured(model) if model else {}, {"_name": arch})
        node = OmegaConf.structured(CRITERION_DATACLASS_REGISTRY[criterion])
        cfg.criterion = OmegaConf.merge(node, {"_name": criterion})
        return cfg

    return configuration


def build(cfg) -> None:
    """What fairseq-train builds before it reads the data."""
    task = tasks.setup_task(cfg.task)
    task.build_model(cfg.model)
    task.build_criterion(cfg.criterion)


@pytest.mark.parametrize(("task", "arch"), PAIRS)
def test_what_does_not_fit_is_refused_in_words(configuration, task, arch):
    if (task, arch) not in FITTING:
        with pytest.raises(InputError) as error:
            build(configuration(task, arch, OURS[0]))
        ours = task if "rnndrop" in task else next(task for task, other in FITTING if other == arch)
        example = next(other for task, other in FITTING if task == ours)
        assert f"--task {ours}" in str(error.value) or example in str(error.value)
        return
    for criterion in CRITERIA:
        if criterion in FITTING[task, arch]:
            build(configuration(task, arch, criterion))
        elif criterion in OURS or "rnndrop" in task:
            with pytest.raises(InputError, match=r"--criterion|--task"):
                build(configuration(task, arch, criterion))

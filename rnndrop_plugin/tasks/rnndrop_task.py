"""What the tasks share: a data folder with dictionaries, which must be those of the checkpoint."""

import logging
import os
from pathlib import Path

import torch
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from fairseq.models import ARCH_MODEL_REGISTRY, BaseFairseqModel
from fairseq.tasks import FairseqTask
from omegaconf import OmegaConf

from rnndrop_plugin.data.indexed import check_identity, identity, load_dictionary
from rnndrop_plugin.data.tokenization import Tokenization
from rnndrop_plugin.errors import InputError

logger = logging.getLogger(__name__)


class RnndropTask(FairseqTask):
    """A task over a data folder with one or several dictionaries.

    Args:
        dictionaries: by their folders inside the data folder; ``""`` is the data folder itself.

    Raises:
        InputError: the data folder's tokenizer.json cannot be read.

    Attributes:
        tokenization: how the text was cut into tokens, according to the data folder or, if it does not say, the
            loaded checkpoint; None if it is not known.
        model_class: the class of models that the task trains; () for models of any class.
        model_kind: what an error calls such a model.
    """

    model_class: type[BaseFairseqModel] | tuple[()] = ()
    model_kind = "another model"

    def __init__(self, cfg: FairseqDataclass, dictionaries: dict[str, Dictionary], **kwargs):
        super().__init__(cfg)
        self.dictionaries = dictionaries
        self.model = None
        self.progress: dict = {}  # counts of fairseq that a resume needs, see rnndrop_plugin.compat.resume
        try:
            self.tokenization = Tokenization.load(Path(cfg.data))
        except ValueError as error:
            raise InputError(str(error)) from error
        data = os.path.abspath(cfg.data)  # lets the model be loaded from another working directory
        identities = {name: identity(dictionary) for name, dictionary in dictionaries.items()}
        self.state.merge_state_dict({"dictionaries": identities, "data": data})
        if self.tokenization is not None:
            self.state.merge_state_dict({"tokenization": self.tokenization.settings()})

    @staticmethod
    def load_dictionaries(cfg: FairseqDataclass, *folders: str) -> dict[str, Dictionary]:
        """The dictionaries in ``folders`` of the data folder.

        Raises:
            InputError: no data folder is given, or one of them is missing or cannot be read.
        """
        if OmegaConf.is_missing(cfg, "data"):
            raise InputError("the data folder is not given (task.data=FOLDER)")
        return {folder: load_dictionary(os.path.join(cfg.data, folder)) for folder in folders}

    def build_model(self, cfg: FairseqDataclass, from_checkpoint=False):
        """Build the model of ``cfg``.

        Raises:
            InputError: the architecture is for another task, or see the model's own ``build_model``.
        """
        model_class = ARCH_MODEL_REGISTRY.get(getattr(cfg, "_name", None))
        if model_class and self.model_class and not issubclass(model_class, self.model_class):
            task = getattr(self.cfg, "_name", None) or type(self).__name__
            fitting = next(name for name, cls in ARCH_MODEL_REGISTRY.items() if issubclass(cls, self.model_class))
            raise InputError(
                f"--arch {cfg._name} does not fit --task {task}, which needs {self.model_kind}: "
                f"use an architecture such as {fitting}"
            )
        self.model = super().build_model(cfg, from_checkpoint)
        return self.model

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        """fairseq's training step, but the backward pass runs in the calling thread.

        torch would run it in a thread of its own for each GPU. That takes nearly twice the time for operations whose
        gradient is written in Python.
        """
        with torch.autograd.set_multithreading_enabled(False):
            return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def load_state_dict(self, state_dict: dict) -> None:
        """Check that the model that is about to be loaded was trained with this task's dictionaries.

        Raises:
            InputError: it was not.
        """
        saved = state_dict.get("dictionaries")
        for folder, own in self.state.dictionaries.items() if saved is not None else ():
            check_identity(os.path.join(folder, "dict.txt"), saved.get(folder), own, self.cfg.data)
        cut = state_dict.get("tokenization")
        if cut is None:
            return
        trained_on = Tokenization(**cut, folder=Path(self.cfg.data))
        if self.tokenization is None:
            self.tokenization = trained_on
        elif self.tokenization.settings() != trained_on.settings():
            logger.warning(
                f"the text of {self.cfg.data} was cut into tokens in another way ({self.tokenization.settings()}) than "
                f"the text that the checkpoint was trained on ({cut})"
            )

    @staticmethod
    def trains(iterator_options: dict) -> bool:
        """Whether :meth:`get_batch_iterator` is called for training, given its options.

        The split does not tell this, because a training split can also be validated on. Only
        Trainer.get_train_iterator passes this option.
        """
        return "update_epoch_batch_itr" in iterator_options

    def get_checkpoint_dict(self) -> dict:
        """What a checkpoint saves of the task for a resume, besides the ``state``."""
        return {type(self).__name__: {"dictionaries": self.state.dictionaries, "progress": self.progress}}

    def set_checkpoint_dict(self, saved: dict) -> None:
        """Check and read what :meth:`get_checkpoint_dict` saved.

        Raises:
            InputError: the checkpoint is of another dictionary.
        """
        self.load_state_dict(saved)

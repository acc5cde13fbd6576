"""Mixins for fairseq's model classes that load trained models."""

from pathlib import Path

from rnndrop_plugin.errors import InputError


class FromPretrained:
    """Gives a model class ``from_pretrained``.

    Attributes:
        pretrained: the name of the class in rnndrop_plugin.tasks.pretrained that such a model is returned as.
    """

    pretrained: str

    @classmethod
    def from_pretrained(
        cls, path: str | Path, checkpoint_file: str = "checkpoint_best.pt", data: str | Path | None = None
    ):
        """Load a model that fairseq-train has made.

        Args:
            path: the folder of its checkpoints (``--save-dir``), or a checkpoint.
            checkpoint_file: the name of the checkpoint in that folder.
            data: the data folder that it was trained on, for its dictionaries. If None, the folder that the checkpoint
                names or, if that is gone, the checkpoint's own folder, to which dict.txt may have been copied.

        Returns:
            An object of the class ``pretrained``, ready to use.

        Raises:
            OSError: the data folder is not there.
            ValueError: the checkpoint is missing, cannot be loaded, is for another task, or was trained with other
                dictionaries than the folder's.
        """
        from rnndrop_plugin.tasks import pretrained  # tasks import models

        return getattr(pretrained, cls.pretrained).load(path, checkpoint_file, data)


class CheckedLoading:
    """Checks parameters before a model loads them."""

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """Load parameters, as torch.nn.Module does.

        Raises:
            InputError: they are for another architecture, other sizes or another dictionary.
        """
        own = self.state_dict()
        others = {name: value.shape for name, value in state_dict.items() if name in own}
        problems = [
            f"{name} is {tuple(shape)}, expected {tuple(own[name].shape)}"
            for name, shape in others.items()
            if shape != own[name].shape
        ]
        if strict:
            problems += [f"{name} is missing" for name in own if name not in others]
            problems += [f"{name} is not known" for name in state_dict if name not in own]
        if problems:
            raise InputError(f"the parameters do not fit this model ({self.describe()}): {problems[0]}")
        return super().load_state_dict(state_dict, strict, model_cfg, args)

    def describe(self) -> str:
        """The kind and size of the model in a few words, for error messages."""
        raise NotImplementedError

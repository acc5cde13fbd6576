"""Trained models by one call from Python."""

from pathlib import Path


class FromPretrained:
    """Gives a model class ``from_pretrained``.

    Attributes:
        pretrained: the class of rnndrop_plugin.tasks.pretrained that asks such a model.
    """

    pretrained: str

    @classmethod
    def from_pretrained(
        cls, path: str | Path, checkpoint_file: str = "checkpoint_best.pt", data: str | Path | None = None
    ):
        """Load a model that fairseq-train has made.

        Args:
            path: the folder of its checkpoints (``--save-dir``), or a checkpoint.
            checkpoint_file: which checkpoint of the folder.
            data: the data folder that it was trained on, for its dictionaries. If None, the folder that the checkpoint
                names or, where that is gone, the checkpoint's own, to which dict.txt may have been copied.

        Returns:
            What :mod:`rnndrop_plugin.tasks.pretrained` has for this kind of model, ready to be asked.

        Raises:
            OSError: a file or the data folder is not there.
            ValueError: the checkpoint cannot be loaded, is of another task, or of other dictionaries than the folder's.
        """
        from rnndrop_plugin.tasks import pretrained  # tasks import models

        return getattr(pretrained, cls.pretrained).load(path, checkpoint_file, data)

"""Recurrent dropout for PyTorch and fairseq.

``rnndrop_plugin.ops`` and ``rnndrop_plugin.modules`` need torch and numpy alone. The tasks, models, criteria and
schedulers are registered with fairseq where it runs: when this package and fairseq have both been imported, in either
order (``--user-dir`` is read by fairseq's own commands), or when :func:`register` is called. If fairseq is first
imported by one of our own modules, such as ``rnndrop_plugin.models``, call :func:`register` yourself.
"""

import importlib.abc
import importlib.util
import sys


def register() -> None:
    """Register the tasks, models, criteria and schedulers with fairseq, and apply the patches of ``compat``.

    Raises:
        ImportError: fairseq is not installed.
    """
    from rnndrop_plugin import compat

    compat.apply()

    from rnndrop_plugin import criterions, models, optim, tasks  # noqa: F401


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    """Calls :func:`register` when fairseq is imported, whose ``--user-dir`` does nothing with an imported package."""

    def find_spec(self, name, path=None, target=None):
        if name != "fairseq":
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        # A module of ours that imports fairseq at this moment cannot be imported by what register imports.
        ours = [module for name, module in sys.modules.items() if name.startswith(f"{__name__}.") and module]
        if spec is not None and not any(getattr(module.__spec__, "_initializing", False) for module in ours):
            load = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (load(module), register())
        return spec


if sys.modules.get("fairseq"):
    register()
elif "fairseq" not in sys.modules:  # None there means that it is not to be imported
    sys.meta_path.insert(0, _RegisterAfterImport())

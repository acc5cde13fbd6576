"""Recurrent dropout for PyTorch and fairseq.

``rnndrop_plugin.ops`` and ``rnndrop_plugin.modules`` need only torch and numpy. The tasks, models, criteria and
schedulers are registered with fairseq once both this package and fairseq have been imported, in either order
(fairseq's own commands import this package through ``--user-dir``), or when :func:`register` is called. If one of our
own modules, such as ``rnndrop_plugin.models``, is the first to import fairseq, call :func:`register` yourself.
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
    """Calls :func:`register` when fairseq is imported, since ``--user-dir`` does nothing with an imported package."""

    def find_spec(self, name, path=None, target=None):
        if name != "fairseq":
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        # While one of our own modules is importing fairseq it is incomplete, and what register imports may need it.
        ours = [module for name, module in sys.modules.items() if name.startswith(f"{__name__}.") and module]
        if spec is not None and not any(getattr(module.__spec__, "_initializing", False) for module in ours):
            load = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (load(module), register())
        return spec


if sys.modules.get("fairseq"):
    register()
elif "fairseq" not in sys.modules:  # None means that its import is blocked
    sys.meta_path.insert(0, _RegisterAfterImport())

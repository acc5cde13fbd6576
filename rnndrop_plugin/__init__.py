"""Recurrent dropout for PyTorch and fairseq.

``rnndrop_plugin.ops`` and ``rnndrop_plugin.modules`` need torch alone. The tasks, models, criteria and schedulers are
registered with fairseq where it runs: importing this package does it if fairseq was imported before (``--user-dir``
is read by fairseq's own commands), and :func:`register` does it at any time.
"""

import sys


def register() -> None:
    """Register the tasks, models, criteria and schedulers with fairseq, and apply the patches of ``compat``.

    Raises:
        ImportError: fairseq is not installed.
    """
    from rnndrop_plugin import compat

    compat.apply()

    from rnndrop_plugin import criterions, models, optim, tasks  # noqa: F401


if sys.modules.get("fairseq"):
    register()

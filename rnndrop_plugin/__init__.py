"""Recurrent dropout for PyTorch and fairseq.

``rnndrop_plugin.ops`` and ``rnndrop_plugin.modules`` need torch alone. Where fairseq can be imported,
importing this package (fairseq's ``--user-dir`` does it) registers the tasks, models, criteria and
schedulers with it.
"""

try:
    import fairseq  # noqa: F401
except ImportError:
    pass
else:
    from rnndrop_plugin import compat

    compat.apply()

    from rnndrop_plugin import criterions, models, optim, tasks  # noqa: F401

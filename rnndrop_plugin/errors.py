"""Errors of the user's input."""

try:
    from hydra.errors import CompactHydraException as _OneLine  # which hydra prints without a traceback
except ImportError:
    _OneLine = Exception


class InputError(_OneLine, ValueError):
    """A flag, file or checkpoint that cannot be used, said in one line.

    Under fairseq's commands the line is all that is printed, and the exit status is 2 (see compat/errors.py).
    """

"""Errors in the user's input: fairseq's commands print one line and exit with status 2, instead of a traceback."""

import logging
import sys
import traceback
import typing

from hydra.core.hydra_config import HydraConfig
from omegaconf.errors import OmegaConfBaseException

import rnndrop_plugin
from rnndrop_plugin.errors import TRACEBACK, InputError, lacks_memory, traceback_is_wanted

logger = logging.getLogger(__name__)

WORDED = (AssertionError, Exception, ImportError, NotImplementedError)  # with a text, fairseq refuses input by these
STATUS = 2  # the exit status after an error in the input


def run(main, cfg, **kwargs):
    """Run a command's ``main``. An error in the input is printed in one line and ends the process.

    A job of fairseq-hydra-train raises an error with this line instead, because hydra goes on with the other jobs of a
    sweep. At the end hydra prints the first job's line and exits with status 1.
    """
    rnndrop_plugin.register()  # needed in a process that fairseq has started for a GPU
    try:
        return main(cfg, **kwargs)
    except Exception as error:
        line = describe(error)
        if line is None:
            raise
        if HydraConfig.initialized():
            logger.error(line)
            raise error if isinstance(error, InputError) else InputError(line) from error
        end(line, error)


def end(line: str, error: Exception | None = None) -> typing.NoReturn:
    """Print an error's line, after its traceback if that is wanted, and end the process."""
    if error is not None and traceback_is_wanted():
        traceback.print_exception(error)
    print(f"error: {line}", file=sys.stderr)
    sys.exit(STATUS)


def _is_worded(error: Exception) -> bool:
    """Whether ``error`` is how fairseq refuses some input, with a text that says why."""
    *_, (frame, _) = [(None, 0), *traceback.walk_tb(error.__traceback__)]
    by_fairseq = frame is not None and frame.f_globals.get("__name__", "").startswith("fairseq")
    return bool(str(error)) and (type(error) in WORDED or type(error) is ValueError and by_fairseq)


def describe(error: Exception) -> str | None:
    """A line that says what is wrong with the user's input; None if ``error`` is not about the input."""
    reasons = []
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        reasons.append(str(cause).rstrip("."))
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        text = ": ".join([*reasons, str(cause)])
    elif isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, UnicodeDecodeError):  # fairseq-interactive names no file
        text = f"a text is not {error.encoding} (byte 0x{error.object[error.start]:02x})"
    elif lacks_memory(error):
        text = "there is not enough memory"
    elif isinstance(error, FloatingPointError):
        text = f"{error}: the training has diverged; a lower --lr or a --clip-norm may help"
    elif isinstance(error, ValueError) and "Unsupported optimizer" in str(error):
        text = "--memory-efficient-fp16 and --memory-efficient-bf16 need an optimizer such as adam"
    elif isinstance(error, (OSError, OmegaConfBaseException)) or _is_worded(error):
        text = str(error).rstrip(".")  # fairseq's own message about a flag, file or package that it cannot use
        if "infer language pair" in text:
            text += " (--task translation, which is the default, needs it: give the model's task by --task)"
    else:
        return None
    text = " ".join(text.split())
    return text if cause is not None else f"{text} ({TRACEBACK}=1 shows where)"

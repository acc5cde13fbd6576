"""Progress bars for long work. They disappear when it is done, and appear only if standard error is a terminal."""

import functools

from tqdm import tqdm

#: Called as tqdm is.
progress_bar = functools.partial(tqdm, leave=False, disable=None)

"""Progress bars of long work, gone when it is done; none where standard error is no terminal."""

import functools

from tqdm import tqdm

#: Called as tqdm is.
progress_bar = functools.partial(tqdm, leave=False, disable=None)

"""A version of the operations: a hash of their sources."""

import hashlib
from pathlib import Path

_FILES = sorted(path for path in Path(__file__).parent.rglob("*.*") if path.suffix in (".py", ".c", ".h"))

#: An argument of torch's operators, because torch.compile's caches on disk identify an operator by its arguments alone.
VERSION = hashlib.sha256(b"".join(path.read_bytes() for path in _FILES)).hexdigest()[:16]

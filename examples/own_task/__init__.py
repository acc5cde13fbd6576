"""Tasks of one's own: ``--user-dir examples/own_task``; everything of rnndrop stays available."""

import rnndrop_plugin  # noqa: F401  registers rnndrop's own

from . import regression  # noqa: F401

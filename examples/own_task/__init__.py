"""Tasks of one's own: ``--user-dir examples/own_task``; everything of rnndrop stays available."""

import rnndrop_plugin

rnndrop_plugin.register()

from . import part_of_speech, regression  # noqa: E402, F401

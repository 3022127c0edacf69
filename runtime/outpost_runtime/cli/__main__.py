"""``python -m outpost_runtime.cli`` is ``outpost``."""

import sys

from outpost_runtime.cli import run

sys.exit(run())

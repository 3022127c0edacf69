"""``python -m outpost_runtime.cli`` is ``outpost``."""

import sys

from outpost_runtime.cli.main import main

sys.exit(main())

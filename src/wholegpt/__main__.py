"""``python -m wholegpt``: the command line without its installed script."""

import sys

from wholegpt.cli import main

sys.exit(main())

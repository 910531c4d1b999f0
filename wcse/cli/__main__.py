"""``python -m wcse.cli``."""

import sys

from wcse.cli import main

sys.exit(main())

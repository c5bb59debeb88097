"""``python -m metafast`` is the ``metafast`` command."""

import sys

from metafast.cli import main

sys.exit(main())

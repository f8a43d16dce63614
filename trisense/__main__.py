"""`python -m trisense` is the command `trisense`."""

import sys

from trisense.cli import main

sys.exit(main())

"""`python -m kubepki`: the command."""

import sys

from kubepki.cli import main

sys.exit(main())

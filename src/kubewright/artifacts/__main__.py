"""Run the command line."""

import sys

from kubewright.artifacts.cli import main

sys.exit(main())

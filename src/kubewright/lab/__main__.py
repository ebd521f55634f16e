"""`python -m kubewright.lab`."""

import sys

from kubewright.lab.cli import main

if __name__ == "__main__":
    sys.exit(main())

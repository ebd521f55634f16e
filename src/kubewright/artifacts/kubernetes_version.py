"""What a program of Kubernetes says that it is."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from kubewright.artifacts.lock import KUBERNETES

# kubectl may be newer or older than the cluster, and says its version in another way.
SPEAKING = tuple(name for name in KUBERNETES if name != "kubectl")
_PATIENCE_SECONDS = 20.0


def said_by(program: Path) -> str:
    """The release, as 1.20.2, of which a program says that it is with --version.

    Empty when it does not say: a program for another processor, a disk mounted noexec, a build with a name of its own.
    What follows the release (1.20.2-eks-1, 1.20.2+k3s1) is left out.
    """
    try:
        reply = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.match(rb"Kubernetes v(\d+\.\d+\.\d+)", reply.stdout)
    return found[1].decode() if found else ""

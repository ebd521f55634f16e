"""What asking Kubernetes' API server may end in."""

from __future__ import annotations

from flanneld.errors import FlanneldError


class KubeError(FlanneldError):
    """The API server answered with an error; `status` is that of HTTP, 0 where there is none."""

    def __init__(self, message: str, hint: str = "", status: int = 0) -> None:
        super().__init__(message, hint)
        self.status = status


class KubeUnavailableError(KubeError):
    """The API server could not be asked: refused, timed out, not trusted, or too busy."""


class GoneError(KubeError):
    """The version that a watch or a list wanted to go on from is too old; everything must be read anew."""

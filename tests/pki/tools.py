"""Programs that judge what kubepki makes: of Debian packages, unpacked or built once into the cache."""

from __future__ import annotations

from pathlib import Path

from debian_packages import unpacked


def cfssl_directory() -> Path:
    """The directory with Debian's `cfssl` and `cfssljson`."""
    return unpacked("cfssl", ["golang-cfssl"]) / "usr/bin"

"""Binaries and images as content: named and locked, fetched or built once, verified, kept by their SHA-256."""

from kubewright.artifacts.catalog import Settings, ensure
from kubewright.artifacts.store import Artifact

__all__ = ["Artifact", "Settings", "ensure"]

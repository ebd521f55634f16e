"""Brings the kernel to what the leases say, and remembers what keeps it from that."""

from __future__ import annotations

from typing import Iterable, Sequence

from flanneld.backend_vxlan import VxlanBackend
from flanneld.config import Network
from flanneld.dataplane import Step, plan
from flanneld.errors import NetworkError
from flanneld.log import Repeated, logger
from flanneld.net import Kernel
from flanneld.subnet import Lease

_PASSES = 3
"""A new MAC makes the kernel forget neighbours: the second look finds that, the third one proves the cure."""

_SHOWN = 10


class Overlay:
    """The overlay on one device; `trouble` is empty while the kernel is as it should be."""

    def __init__(self, kernel: Kernel, backend: VxlanBackend, subnet: Network) -> None:
        self._kernel = kernel
        self._backend = backend
        self._subnet = subnet
        self._repeated = Repeated()
        self._reported: Sequence[Step] = ()
        self.ifindex = 0
        self.trouble = "the overlay is not programmed yet"

    def converge(self, leases: Iterable[Lease]) -> None:
        """Compare, repair what differs, and look again. A failure is logged and kept in `trouble`."""
        desired = self._backend.desired(self._subnet, leases)
        try:
            for _ in range(_PASSES):
                found = self._kernel.find(desired.device)
                self.ifindex = found.device.ifindex if found.device else 0
                steps = plan(desired, found)
                if not steps:
                    break
                if steps != self._reported:  # what fails is tried again and again, but told once
                    _report(steps)
                    self._reported = steps
                self._kernel.apply(desired.device.name, steps)
        except NetworkError as error:
            self.trouble = str(error)
            self._repeated.warn(f"the overlay is not as it should be, trying again: {error}")
            return
        except OSError as error:
            self.trouble = f"the kernel's network cannot be read: {error}"
            self._repeated.warn(self.trouble)
            return
        self.trouble = ""
        self._reported = ()
        self._repeated.clear("the overlay is as it should be again")


def _report(steps: Sequence[Step]) -> None:
    for step in steps[:_SHOWN]:
        fields = ", ".join(f"{name} {value}" for name, value in zip(step._fields, step) if name != "device")
        logger.info("%s %s", type(step).__name__, fields)
    if len(steps) > _SHOWN:
        logger.info("and %d steps more", len(steps) - _SHOWN)

"""Figures of the daemon in Prometheus' text format."""

from __future__ import annotations

import threading
from typing import Dict, List, NamedTuple, Tuple

_Labels = Tuple[Tuple[str, str], ...]


class Metric(NamedTuple):
    """One figure's name, kind (counter, gauge or summary) and meaning."""

    name: str
    kind: str
    help: str


METRICS: Tuple[Metric, ...] = (
    Metric("flannel_leases", "gauge", "Leases in the network, the own one included."),
    Metric("flannel_leases_ignored", "gauge", "Leases that are not used, by reason."),
    Metric("flannel_peers_programmed", "gauge", "Other machines to which something that is programmed leads."),
    Metric("flannel_ready", "gauge", "1 while /readyz says so, else 0."),
    Metric("flannel_drift_repaired_total", "counter", "Things in the kernel that were found different and set right."),
    Metric("flannel_rule_repairs_total", "counter", "Times that the traffic rules were found different and set right."),
    Metric("flannel_store_request_seconds", "summary", "Time of requests to etcd or Kubernetes."),
    Metric("flannel_store_failures_total", "counter", "Requests to etcd or Kubernetes that failed."),
    Metric("flannel_watch_restarts_total", "counter", "Times that the watch of the leases had to be opened anew."),
    Metric("flannel_udp_packets_total", "counter", "Packets that the udp backend carried or dropped, by result."),
    Metric("flannel_lease_renewals_total", "counter", "Times that the own lease was renewed."),
    Metric("flannel_lease_expires_seconds", "gauge", "Seconds until the own lease expires; absent when it does not."),
)


class Figures:
    """Values of METRICS; every thread may change them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: Dict[str, Dict[_Labels, float]] = {}

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            values = self._values.setdefault(name, {})
            key = tuple(sorted(labels.items()))
            values[key] = values.get(key, 0) + amount

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        with self._lock:
            self._values.setdefault(name, {})[tuple(sorted(labels.items()))] = value

    def drop(self, name: str) -> None:
        """Take a gauge away: it has no value now."""
        with self._lock:
            self._values.pop(name, None)

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Count one more observation of a summary."""
        self.add(f"{name}_sum", seconds, **labels)
        self.add(f"{name}_count", 1, **labels)

    def value(self, name: str) -> float:
        """Return the sum over all labels, 0 for what was never set."""
        with self._lock:
            return sum(self._values.get(name, {}).values())

    def text(self) -> str:
        """Return everything in Prometheus' text exposition format, version 0.0.4."""
        lines: List[str] = []
        with self._lock:
            for metric in METRICS:
                lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
                names = [metric.name]
                if metric.kind == "summary":
                    names = [f"{metric.name}_sum", f"{metric.name}_count"]
                for name in names:
                    values = self._values.get(name, {} if metric.kind == "gauge" else {(): 0.0})
                    lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in sorted(values.items())]
        return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """Return a number with all of its digits."""
    return str(int(value)) if value == int(value) else repr(value)


def _labels(labels: _Labels) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}" if labels else ""


FIGURES = Figures()
"""The process's own figures: there is one daemon in a process."""

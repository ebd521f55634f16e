from __future__ import annotations

import pytest

from flanneld.metrics import Figures


def lines(figures: Figures, name: str) -> list[str]:
    return [line for line in figures.text().splitlines() if line.startswith((f"{name} ", f"{name}{{"))]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1.0, "1"), (1234567, "1234567"), (123456789012.0, "123456789012"), (0.1234567891, "0.1234567891")],
)
def test_numbers_keep_their_digits(value: float, text: str) -> None:
    figures = Figures()
    figures.set("flannel_leases", value)
    assert lines(figures, "flannel_leases") == [f"flannel_leases {text}"]


def test_what_goes_away_is_absent() -> None:
    figures = Figures()
    figures.drop("flannel_leases")
    figures.set("flannel_leases", 3)
    figures.drop("flannel_leases")
    assert lines(figures, "flannel_leases") == []
    assert figures.value("flannel_leases") == 0


def test_counters_are_there_from_the_start_and_summed_by_label() -> None:
    figures = Figures()
    assert lines(figures, "flannel_udp_packets_total") == ["flannel_udp_packets_total 0"]
    figures.add("flannel_udp_packets_total", 2, result="sent")
    figures.add("flannel_udp_packets_total", result="sent")
    figures.observe("flannel_store_request_seconds", 0.25, op="put")
    assert lines(figures, "flannel_udp_packets_total") == ['flannel_udp_packets_total{result="sent"} 3']
    assert lines(figures, "flannel_store_request_seconds_sum") == ['flannel_store_request_seconds_sum{op="put"} 0.25']

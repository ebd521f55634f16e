from __future__ import annotations

import ipaddress

import pytest

from flanneld.config import parse_config
from flanneld.subnet import (
    Address,
    Attributes,
    Lease,
    Network,
    choose_subnet,
    decode_attributes,
    encode_attributes,
    format_key,
    free_subnets,
    own_lease,
    parse_key,
    parse_lease,
)

CONFIG = parse_config('{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}')
VXLAN = (
    '{"PublicIP":"192.168.60.2","PublicIPv6":null,"BackendType":"vxlan",'
    '"BackendData":{"VNI":1,"VtepMAC":"2a:18:f8:5f:7b:0a"}}'
)


def lease(subnet: str, public_ip: str = "192.168.60.9") -> Lease:
    return Lease(Network(subnet), Attributes(Address(public_ip), "vxlan"), 1, 1)


@pytest.mark.parametrize(
    "text",
    [
        VXLAN,
        '{"PublicIP":"192.168.60.2","PublicIPv6":null}',
        '{"PublicIP":"192.168.60.2","PublicIPv6":null,"BackendType":"host-gw"}',
        '{"PublicIP":"192.168.60.2","PublicIPv6":"fd00::2","BackendType":"wireguard",'
        '"BackendData":{"PublicKey":"x=","Port":51820}}',
    ],
)
def test_values_of_the_go_daemon_come_back_byte_for_byte(text: str) -> None:
    attributes = decode_attributes(text)
    assert attributes is not None
    assert encode_attributes(attributes) == text


def test_a_value_of_an_old_daemon_is_read() -> None:
    old = '{"PublicIP":"192.168.60.2","BackendType":"vxlan","BackendData":{"VtepMAC":"2a:18:f8:5f:7b:0a"}}'
    attributes = decode_attributes(old)
    assert attributes is not None
    assert attributes.public_ip == Address("192.168.60.2")


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"PublicIP":null}', '{"PublicIP":"x"}', "\x00"])
def test_unusable_values_are_no_lease(text: str) -> None:
    assert decode_attributes(text) is None
    assert parse_lease("10.5.1.0-24", text) is None


def test_keys() -> None:
    assert format_key(Network("10.5.66.0/24")) == "10.5.66.0-24"
    assert parse_key("10.5.66.0-24") == Network("10.5.66.0/24")
    assert parse_key("10.5.66.0-24&fc00:0:0:1::-64") == Network("10.5.66.0/24")


@pytest.mark.parametrize(
    "key",
    [
        "10", "10.12.13.0", "10.12.13-24", "10.12.13.300-24", "10.12.13.0-24hi", "&2001::-56", "10.12.13.0-32",
        "10.12.13.0-24&:12:13:-56", "10.12.13.0-24&20011::-56", "10.12.13.0-24&2001-56", "10.12.13.0-24&2001::",
        "10.12.13.0-24&2001::-56hi", "10.12.13.0-24&2001::-128",
    ],
)  # fmt: skip
def test_malformed_keys(key: str) -> None:
    assert parse_key(key) is None


def test_the_choice_is_among_the_first_hundred_free() -> None:
    leases = {str(n): lease(f"10.5.{n}.0/24") for n in (1, 2, 4)}
    seen: list[list[Network]] = []

    def pick(candidates: list[Network]) -> Network:
        seen.append(candidates)
        return candidates[-1]

    assert choose_subnet(CONFIG, leases, None, pick) == Network("10.5.103.0/24")
    assert len(seen[0]) == 100
    assert seen[0][:2] == [Network("10.5.3.0/24"), Network("10.5.5.0/24")]


def test_leases_of_another_length_block_what_they_overlap() -> None:
    free = free_subnets(CONFIG, [Network("10.5.0.0/22"), Network("10.5.4.128/25")], 2)
    assert free == [Network("10.5.5.0/24"), Network("10.5.6.0/24")]


@pytest.mark.parametrize(
    ("previous", "kept"),
    [("10.5.77.0/24", True), ("10.5.1.0/24", False), ("10.6.1.0/24", False), ("10.5.77.0/25", False)],
)
def test_the_previous_subnet_is_kept_when_free_and_permitted(previous: str, *, kept: bool) -> None:
    chosen = choose_subnet(CONFIG, {"a": lease("10.5.1.0/24")}, Network(previous), lambda free: free[0])
    assert (chosen == Network(previous)) is kept


def test_none_when_all_are_taken() -> None:
    leases = {str(one): lease(str(one)) for one in CONFIG.subnets()}
    assert choose_subnet(CONFIG, leases, None) is None


def test_the_own_lease_is_found_by_address() -> None:
    leases = {"a": lease("10.5.1.0/24"), "b": lease("10.5.2.0/24", "192.168.60.1")}
    assert own_lease(leases, ipaddress.IPv4Address("192.168.60.1")) == "b"
    assert own_lease(leases, ipaddress.IPv4Address("192.168.60.7")) is None

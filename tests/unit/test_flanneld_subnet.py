from __future__ import annotations

import ipaddress
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld.subnet.config import Network, Pool, parse_config
from flanneld.subnet.lease import (
    Attributes,
    Lease,
    canonical,
    choose_subnets,
    decode_attributes,
    encode_attributes,
    format_key,
    free_subnets,
    parse_key,
    parse_lease,
    permits,
)

CONFIG = parse_config('{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}')
DUAL = parse_config('{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}')
VXLAN = (
    '{"PublicIP":"192.168.60.2","PublicIPv6":null,"BackendType":"vxlan",'
    '"BackendData":{"VNI":1,"VtepMAC":"2a:18:f8:5f:7b:0a"}}'
)


def net(text: str) -> Network:
    return ipaddress.ip_network(text)


def pool() -> Pool:
    assert CONFIG.ipv4 is not None
    return CONFIG.ipv4


def lease(*subnets: str, public_ip: str = "192.168.60.9") -> Lease:
    return Lease(tuple(map(net, subnets)), Attributes(public_ip, "vxlan"))


@pytest.mark.parametrize(
    "text",
    [
        VXLAN,
        '{"PublicIP":"192.168.60.2","PublicIPv6":null}',
        '{"PublicIP":"192.168.60.2","PublicIPv6":null,"BackendType":"host-gw"}',
        '{"PublicIP":"192.168.60.2","PublicIPv6":"fd00::2","BackendType":"wireguard",'
        '"BackendData":{"PublicKey":"x=","Port":51820},"BackendV6Data":{"PublicKey":"x=","Port":51820}}',
        '{"PublicIP":"192.168.60.2","PublicIPv6":null,"BackendType":"extension",'
        '"BackendData":"a \\u003c b \\u0026 ü\\n"}',
    ],
)
def test_values_of_the_go_daemon_come_back_byte_for_byte(text: str) -> None:
    attributes = decode_attributes(text)
    assert attributes is not None
    assert encode_attributes(attributes) == text


def test_a_value_of_an_old_daemon_is_read() -> None:
    old = '{"PublicIP":"192.168.60.2","BackendType":"vxlan","BackendData":{"VtepMAC":"2a:18:f8:5f:7b:0a"}}'
    attributes = decode_attributes(old)
    assert attributes == Attributes("192.168.60.2", "vxlan", {"VtepMAC": "2a:18:f8:5f:7b:0a"})
    assert attributes.data(4) == {"VtepMAC": "2a:18:f8:5f:7b:0a"}
    assert attributes.data(6) is None
    assert (attributes.public(4), attributes.public(6)) == ("192.168.60.2", "")


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "{}", '{"PublicIP":null}', '{"PublicIP":"x"}', "\x00", '{"PublicIP":"10.0.0.256"}',
        '{"PublicIP":"::1"}', '{"PublicIP":7}', '{"PublicIP":"192.168.60.2","PublicIPv6":"10.0.0.1"}', "[" * 100000,
    ],
)  # fmt: skip
def test_unusable_values_are_no_lease(text: str) -> None:
    assert decode_attributes(text) is None
    assert parse_lease("10.5.1.0-24", text) is None


def test_addresses_have_one_form() -> None:
    assert canonical("fd00:0:0::1", 6) == "fd00::1"
    with pytest.raises(ValueError, match="no IPv4 address"):
        canonical("1.2.3", 4)


def test_keys() -> None:
    assert format_key([net("10.5.66.0/24")]) == "10.5.66.0-24"
    assert format_key([net("10.5.66.0/24"), net("fc00:0:0:7::/64")]) == "10.5.66.0-24&fc00:0:0:7::-64"
    assert parse_key("10.5.66.0-24") == (net("10.5.66.0/24"),)
    assert parse_key("10.5.66.0-24&fc00:0:0:1::-64") == (net("10.5.66.0/24"), net("fc00:0:0:1::/64"))


@pytest.mark.parametrize(
    "key",
    [
        "10", "10.12.13.0", "10.12.13-24", "10.12.13.300-24", "10.12.13.0-24hi", "&2001::-56", "10.12.13.0-32",
        "10.12.13.0-24&:12:13:-56", "10.12.13.0-24&20011::-56", "10.12.13.0-24&2001-56", "10.12.13.0-24&2001::",
        "10.12.13.0-24&2001::-56hi", "10.12.13.0-24&2001::-128", "", "10.5.1.0-24\n", "١.1.1.1-24",
    ],
)  # fmt: skip
def test_malformed_keys(key: str) -> None:
    assert parse_key(key) is None


_V4 = st.builds(
    lambda address, length: ipaddress.IPv4Network((address, length), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(0, 31),
)
_V6 = st.builds(
    lambda address, length: ipaddress.IPv6Network((address, length), strict=False),
    st.integers(0, 2**128 - 1) | st.integers(0, 2**16),
    st.integers(0, 127),
)


@given(_V4, st.none() | _V6)
def test_every_key_comes_back(first: ipaddress.IPv4Network, second: ipaddress.IPv6Network | None) -> None:
    subnets: tuple[Network, ...] = (first,) if second is None else (first, second)
    assert parse_key(format_key(subnets)) == subnets


@given(
    st.builds(
        Attributes,
        st.ip_addresses(v=4).map(str),
        st.text(max_size=8),
        st.none() | st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4) | st.booleans()),
        st.just("") | st.integers(0, 2**128 - 1).map(lambda n: canonical(str(ipaddress.IPv6Address(n)), 6)),
        st.none() | st.text(max_size=4),
    )
)
def test_every_value_comes_back(attributes: Attributes) -> None:
    text = encode_attributes(attributes)
    assert decode_attributes(text) == attributes
    assert json.loads(text)["PublicIP"] == attributes.public_ip
    assert not set("<>&") & set(text)


@given(st.text())
def test_any_text_is_a_key_or_none(text: str) -> None:
    assert parse_key(text) is None
    assert decode_attributes(text) is None


def test_the_choice_is_among_the_first_hundred_free() -> None:
    leases = {str(n): lease(f"10.5.{n}.0/24") for n in (1, 2, 4)}
    seen: list[list[Network]] = []

    def pick(candidates: list[Network]) -> Network:
        seen.append(candidates)
        return candidates[-1]

    assert choose_subnets(CONFIG, leases, (), pick) == (net("10.5.103.0/24"),)
    assert len(seen[0]) == 100
    assert seen[0][:2] == [net("10.5.3.0/24"), net("10.5.5.0/24")]


def test_leases_of_another_length_block_what_they_overlap() -> None:
    free = free_subnets(pool(), [net("10.5.0.0/22"), net("10.5.4.128/25"), net("fc00::/64")], 2)
    assert free == [net("10.5.5.0/24"), net("10.5.6.0/24")]


@pytest.mark.parametrize(
    ("previous", "kept"),
    [("10.5.77.0/24", True), ("10.5.1.0/24", False), ("10.6.1.0/24", False), ("10.5.77.0/25", False)],
)
def test_the_previous_subnet_is_kept_when_free_and_permitted(previous: str, *, kept: bool) -> None:
    chosen = choose_subnets(CONFIG, {"a": lease("10.5.1.0/24")}, (net(previous),), lambda free: free[0])
    assert (chosen == (net(previous),)) is kept


def test_families_are_chosen_by_themselves() -> None:
    leases = {"a": lease("10.5.1.0/24", "fc00:0:0:1::/64")}
    chosen = choose_subnets(DUAL, leases, (net("10.5.9.0/24"), net("fc00:0:0:1::/64")), lambda free: free[0])
    assert chosen == (net("10.5.9.0/24"), net("fc00:0:0:2::/64"))


def test_none_when_all_are_taken() -> None:
    leases = {str(one): lease(str(one)) for one in pool().subnets()}
    assert choose_subnets(CONFIG, leases, ()) is None


def test_what_fits_has_all_families_and_no_more() -> None:
    both = (net("10.5.1.0/24"), net("fc00:0:0:1::/64"))
    assert permits(DUAL, both)
    assert permits(CONFIG, both[:1])
    assert not permits(CONFIG, both)
    assert not permits(DUAL, both[:1])


def test_leases_in_words() -> None:
    both = lease("10.5.66.0/24", "fc00::/64")
    assert both.name == "10.5.66.0/24 and fc00::/64"
    assert (both.subnet(6), lease("10.5.66.0/24").subnet(6)) == (net("fc00::/64"), None)

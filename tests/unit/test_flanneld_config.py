from __future__ import annotations

import json

import pytest

from flanneld.config import Address, Network, parse_config, vxlan_config
from flanneld.errors import ConfigError


def config(**keys: object) -> str:
    return json.dumps({"Network": "10.3.0.0/16", "Backend": {"Type": "vxlan"}, **keys})


@pytest.mark.parametrize(
    ("network", "length", "first", "last", "count"),
    [
        ("10.3.0.0/16", 24, "10.3.1.0", "10.3.255.0", 255),
        ("10.3.7.9/16", 24, "10.3.1.0", "10.3.255.0", 255),
        ("10.3.0.0/22", 24, "10.3.1.0", "10.3.3.0", 3),
        ("10.3.0.0/23", 25, "10.3.0.128", "10.3.1.128", 3),
        ("10.3.0.0/28", 30, "10.3.0.4", "10.3.0.12", 3),
    ],
)
def test_defaults_follow_from_the_network(network: str, length: int, first: str, last: str, count: int) -> None:
    parsed = parse_config(config(Network=network))
    assert parsed.subnet_len == length
    assert (parsed.subnet_min, parsed.subnet_max) == (Address(first), Address(last))
    assert len(list(parsed.subnets())) == count


def test_keys_match_in_any_case_and_unknown_ones_are_ignored() -> None:
    parsed = parse_config('{"network":"10.3.0.0/16","subnetLEN":26,"x":1,"BACKEND":{"type":"VXLAN","vni":7}}')
    assert (parsed.network, parsed.subnet_len, parsed.backend_type) == (Network("10.3.0.0/16"), 26, "vxlan")
    assert vxlan_config(parsed).vni == 7


def test_without_a_backend_it_is_udp() -> None:
    assert parse_config('{"Network":"10.3.0.0/16"}').backend_type == "udp"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "Network is null"),
        (config(Network="0.0.0.0/0"), '"0.0.0.0/0"'),
        (config(Network="10.3.0.0"), '"10.3.0.0"'),
        (config(Network="10.3.0.0/29"), "too small"),
        (config(SubnetLen=31), "SubnetLen is 31"),
        (config(SubnetLen=17), "four subnets"),
        (config(SubnetLen="24"), 'SubnetLen is "24"'),
        (config(SubnetMin="10.4.0.0"), "SubnetMin 10.4.0.0 is not in the range"),
        (config(SubnetMax="10.3.9.7"), "the subnet there is 10.3.9.0/24"),
        (config(SubnetMin="10.3.9.0", SubnetMax="10.3.8.0"), "above SubnetMax"),
        (config(SubnetMin=5), "SubnetMin"),
        (config(EnableIPv6=True, IPv6Network="fc00::/48"), "IPv6"),
        (config(EnableIPv4=False), "EnableIPv4"),
        (config(EnableIPv6="yes"), '"yes"'),
        (config(Backend={}), "Type"),
        (config(Backend="vxlan"), "not an object"),
    ],
)
def test_errors_name_the_key_and_the_value(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [{"VNI": 0}, {"VNI": "1"}, {"Port": 70000}, {"MTU": 100}, {"Learning": "no"}, {"DirectRouting": True}],
)
def test_bad_vxlan_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        vxlan_config(parse_config(config(Backend={"Type": "vxlan", **settings})))


def test_other_backends_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'host-gw' is not supported yet"):
        vxlan_config(parse_config(config(Backend={"Type": "Host-GW"})))


def test_vxlan_defaults() -> None:
    assert vxlan_config(parse_config(config(Backend={"Type": "vxlan"}))) == (1, 8472, None, False, False)

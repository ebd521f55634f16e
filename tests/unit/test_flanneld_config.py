from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flanneld.backend.registry import check_backend
from flanneld.errors import ConfigError
from flanneld.subnet.change import refusals
from flanneld.subnet.config import NetworkConfig, Pool, flag, number, parse_config, words


def config(**keys: object) -> str:
    return json.dumps({"Network": "10.3.0.0/16", "Backend": {"Type": "vxlan"}, **keys})


def ipv4(text: str) -> Pool:
    pool = parse_config(text).ipv4
    assert pool is not None
    return pool


def ipv6(**keys: object) -> Pool:
    pool = parse_config(config(EnableIPv6=True, **keys)).ipv6
    assert pool is not None
    return pool


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
    pool = ipv4(config(Network=network))
    assert pool.subnet_len == length
    assert (str(pool.subnet_min), str(pool.subnet_max)) == (first, last)
    assert len(list(pool.subnets())) == count


@pytest.mark.parametrize(
    ("network", "length", "first", "last"),
    [
        ("fc00::/48", 64, "fc00:0:0:1::", "fc00:0:0:ffff::"),
        ("fc00::/63", 65, "fc00::8000:0:0:0", "fc00:0:0:1:8000::"),
        ("fc00::/124", 126, "fc00::4", "fc00::c"),
    ],
)
def test_defaults_of_ipv6(network: str, length: int, first: str, last: str) -> None:
    pool = ipv6(IPv6Network=network)
    assert pool.subnet_len == length
    assert (str(pool.subnet_min), str(pool.subnet_max)) == (first, last)


def test_families_can_be_alone_and_together() -> None:
    both = parse_config(config(EnableIPv6=True, IPv6Network="fc00::/48"))
    assert set(both.pools) == set(both.networks) == {4, 6}
    assert set(parse_config(config(IPv6Network="fc00::/48")).pools) == {4}
    alone = parse_config(config(Network="", EnableIPv4=False, EnableIPv6=True, IPv6Network="fc00::/48"))
    assert set(alone.pools) == {6}


def test_keys_match_in_any_case_and_unknown_ones_are_ignored() -> None:
    text = '{"network":"10.3.0.0/16","subnetLEN":26,"x":1,"BACKEND":{"type":"VXLAN","vni":7},"enableNFTables":true}'
    parsed = parse_config(text)
    assert (str(parsed.networks[4]), ipv4(text).subnet_len) == ("10.3.0.0/16", 26)
    assert (parsed.backend_type, parsed.backend["vni"], parsed.nftables) == ("vxlan", 7, True)


def test_without_a_backend_it_is_udp() -> None:
    assert parse_config('{"Network":"10.3.0.0/16"}').backend_type == "udp"


def test_what_a_pool_permits_is_what_it_yields() -> None:
    pool = ipv4(config(Network="10.3.0.0/20", SubnetMin="10.3.2.0", SubnetMax="10.3.9.0"))
    assert all(pool.permits(subnet) for subnet in pool.subnets())
    outside = ("10.3.0.0/16", "10.3.1.0/24", "10.3.10.0/24", "10.3.4.0/25", "10.3.4.0/23")
    assert not any(pool.permits(ipv4(config(Network=network)).network) for network in outside)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "not JSON"),
        ("[" * 100000, "not JSON"),
        (config(SubnetLen=[]), "SubnetLen is []"),
        ('{"Network": ' + "[" * 900 + "]" * 900 + "}", "more than 20 levels"),
        (config(Backend={"Type": "vxlan", "VNI": json.loads("[" * 50 + "]" * 50)}), "more than 20 levels"),
        (config(Network="x" * 5000), "xxx..."),
        (config(SubnetLen=float("nan")), "NaN is no number"),
        (config(Network="10.3.0.0/255.255.0.0"), '"10.3.0.0/255.255.0.0"'),
        (config(EnableIPv6=True, IPv6Network="fd00::%x/48"), 'IPv6Network is "fd00::%x/48"'),
        (config(EnableIPv6=True, IPv6Network="fd00::/48", IPv6SubnetMin="fd00::%x"), 'IPv6SubnetMin is "fd00::%x"'),
        ("[]", "not a JSON object"),
        ("{}", "Network is null"),
        (config(Network="0.0.0.0/0"), '"0.0.0.0/0"'),
        (config(Network="10.3.0.0"), '"10.3.0.0"'),
        (config(Network="fc00::/48"), '"fc00::/48"'),
        (config(Network="10.3.0.0/29"), "too small"),
        (config(SubnetLen=31), "SubnetLen is 31"),
        (config(SubnetLen=17), "four subnets"),
        (config(SubnetLen="24"), 'SubnetLen is "24"'),
        (config(SubnetLen=True), "SubnetLen is true"),
        (config(SubnetMin="10.4.0.0"), "SubnetMin 10.4.0.0 is not in the range"),
        (config(SubnetMax="10.3.9.7"), "the subnet there is 10.3.9.0/24"),
        (config(SubnetMin="10.3.9.0", SubnetMax="10.3.8.0"), "above SubnetMax"),
        (config(SubnetMin=5), "SubnetMin"),
        (config(EnableIPv6=True), "IPv6Network is null"),
        (config(EnableIPv6=True, IPv6Network="10.3.0.0/16"), 'IPv6Network is "10.3.0.0/16"'),
        (config(EnableIPv6=True, IPv6Network="fc00::/126"), "too small"),
        (config(EnableIPv6=True, IPv6Network="fc00::/48", IPv6SubnetLen=127), "IPv6SubnetLen is 127"),
        (config(EnableIPv6=True, IPv6Network="fc00::/48", IPv6SubnetMin="fd00::"), "IPv6SubnetMin fd00:: is not in"),
        (config(EnableIPv6=True, IPv6Network="fc00::/48", IPv6SubnetMax="fc00::1"), "IPv6SubnetMax fc00::1 is not on"),
        (config(EnableIPv4=False), "EnableIPv4"),
        (config(EnableIPv6="yes"), '"yes"'),
        (config(Backend={}), "Type"),
        (config(Backend="vxlan"), "not an object"),
        (config(Backend={"Type": 7}), "Type 7"),
    ],
)
def test_errors_name_the_key_and_the_value(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert said in str(caught.value)


def test_settings_of_backends() -> None:
    keys = {"port": 8472, "learning": False, "psk": "x", "none": None}
    assert number(keys, "Port", 1, 0, 65535) == 8472
    assert number(keys, "None", 5, 0, 9) == 5
    assert flag(keys, "Learning", default=True) is False
    assert words(keys, "PSK") == "x"
    for function, name in ((number, "Learning"), (number, "PSK")):
        with pytest.raises(ConfigError, match=name):
            function(keys, name, 1, 0, 5)
    with pytest.raises(ConfigError, match="Port is 8472"):
        number(keys, "Port", 1, 0, 100)
    with pytest.raises(ConfigError, match="Port"):
        flag(keys, "Port")
    with pytest.raises(ConfigError, match="Port"):
        words(keys, "Port")


_TEXTS = ("10.3.0.0/16", "fc00::/48", "fc00::%x/48", "10.3.4.0", "fc00:0:0:4::", "fc00::%x", "vxlan", "udp", "host-gw")
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(_TEXTS),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
_BACKEND = st.dictionaries(
    st.sampled_from(("Type", "VNI", "Port", "MTU", "GBP", "Learning", "DirectRouting", "PreStartupCommand")), _JSON
)
_VALID = {"Network": "10.3.0.0/16", "IPv6Network": "fc00::/48", "EnableIPv6": True, "Backend": {"Type": "vxlan"}}
_KEYS = (
    *("Network", "SubnetLen", "SubnetMin", "SubnetMax", "IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin"),
    *("IPv6SubnetMax", "EnableIPv4", "EnableIPv6", "EnableNFTables", "Backend"),
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first text takes Hypothesis a second
@given(st.dictionaries(st.sampled_from(_KEYS), _JSON | _BACKEND))
def test_whatever_it_says_it_is_taken_or_refused_in_words(raw: dict[str, object]) -> None:
    """Any value in any key, alone and beside valid ones, also in what the backends look at."""
    for text in (json.dumps(raw), json.dumps({**_VALID, **raw})):
        try:
            parsed = parse_config(text)
            check_backend(parsed)
        except ConfigError:
            continue
        assert isinstance(parsed, NetworkConfig)
        assert not refusals(parsed, parse_config(text))
        for pool in parsed.pools.values():
            assert pool.permits(next(iter(pool.subnets())))
            assert "%" not in f"{pool.network} {pool.subnet_min} {pool.subnet_max}"


@given(st.text(max_size=30) | st.integers(1, 3000).map(lambda deep: "[" * deep + "]" * deep))
def test_any_text_is_a_configuration_or_refused_in_words(text: str) -> None:
    for one in (text, f'{{"Backend": {text}}}'):
        with pytest.raises(ConfigError):
            parse_config(one)

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld.errors import ConfigError, LeaseError, UsageError
from flanneld.kube.client import Event
from flanneld.kube.node import (
    annotation_prefix,
    announced,
    condition,
    lease_of,
    own_subnets,
    pod_cidrs,
    prescribed,
    view,
)
from flanneld.subnet.config import parse_config
from flanneld.subnet.kube import Book
from flanneld.subnet.lease import Attributes

PREFIX = "flannel.alpha.coreos.com/"
CONFIG = parse_config('{"Network": "10.244.0.0/16"}')


def node(name: str = "a", cidrs: tuple[str, ...] = ("10.244.1.0/24",), **annotations: str) -> dict[str, Any]:
    words = {PREFIX + word.replace("_", "-"): value for word, value in annotations.items()}
    return {"metadata": {"name": name, "annotations": words}, "spec": {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)}}


GOOD = {"kube_subnet_manager": "true", "backend_type": "vxlan", "backend_data": '{"VNI":1}', "public_ip": "192.0.2.1"}


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/"),
        ("flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/"),
        ("flannel.alpha.coreos.com/one", "flannel.alpha.coreos.com/one-"),
        ("flannel.alpha.coreos.com/one-", "flannel.alpha.coreos.com/one-"),
        ("org.com", "org.com/"),
        ("org9.com", "org9.com/"),
        ("org.com/9", "org.com/9-"),
        ("org.com/9s_a", "org.com/9s_a-"),
    ],
)
def test_prefixes_that_kubernetes_takes(given_: str, wanted: str) -> None:
    assert annotation_prefix(given_) == wanted


@pytest.mark.parametrize(
    "wrong",
    ["", "org", "org/", "/", "org.com//", "org.com/a/b", "org.com/a/", "Org.com", "org.com/A", "org.com/-", ".com/a"],
)
@pytest.mark.parametrize("tail", ["", "\n"])
def test_prefixes_that_kubernetes_does_not_take(wrong: str, tail: str) -> None:
    with pytest.raises(UsageError, match="-kube-annotation-prefix is "):
        annotation_prefix(wrong + tail)


@pytest.mark.parametrize(
    "wrong",
    ["org.com\n", "org.com/" + "a" * 60, "a" * 250 + ".com", "-a.com", "org..com", "örg.com", "org.com/a b"],
)
def test_prefixes_that_only_the_api_server_would_refuse(wrong: str) -> None:
    with pytest.raises(UsageError, match="-kube-annotation-prefix is "):
        annotation_prefix(wrong)


def test_data_is_json_without_blanks_and_with_the_escapes_of_go() -> None:
    made = announced(Attributes("192.0.2.1", "extension", {"a": ["<&>", "ä"], "b": None}), PREFIX)
    assert made[f"{PREFIX}backend-data"] == '{"a":["\\u003c\\u0026\\u003e","ä"],"b":null}'
    assert made[f"{PREFIX}public-ipv6"] is made[f"{PREFIX}backend-v6-data"] is None
    assert announced(Attributes("", "", None, "2001:db8::1"), PREFIX) == {
        f"{PREFIX}kube-subnet-manager": "true",
        f"{PREFIX}backend-type": "",
        f"{PREFIX}public-ipv6": "2001:db8::1",
        f"{PREFIX}backend-v6-data": "null",
        f"{PREFIX}public-ip": None,
        f"{PREFIX}backend-data": None,
    }


@given(
    st.builds(
        Attributes,
        st.just("192.0.2.1"),
        st.text(),
        st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists),
        st.just("2001:db8::1"),
        st.dictionaries(st.text(), st.text()),
    )
)
def test_what_is_announced_is_read_back(attributes: Attributes) -> None:
    made = node(cidrs=("fd00:0:0:1::/64", "10.244.1.0/24"))
    made["metadata"]["annotations"] = announced(attributes, PREFIX)
    lease = lease_of(made, PREFIX, (4, 6))
    assert lease.attributes == attributes
    assert [str(one) for one in lease.subnets] == ["10.244.1.0/24", "fd00:0:0:1::/64"]
    assert lease.permanent


def test_a_family_without_address_or_outside_of_the_network_is_left_out() -> None:
    both = ("10.244.1.0/24", "fd00:0:0:1::/64")
    assert [one.version for one in lease_of(node(cidrs=both, **GOOD), PREFIX, (4, 6)).subnets] == [4]
    made = node(cidrs=both, **GOOD, public_ipv6="2001:db8::1", backend_v6_data="{")
    assert [one.version for one in lease_of(made, PREFIX, (4,)).subnets] == [4]
    with pytest.raises(LookupError):
        lease_of(node(**GOOD), PREFIX, (6,))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"public_ip": "192.0.2"}, "public-ip is '192.0.2'"),
        ({"public_ip": ""}, "it announces no address"),
        ({"backend_data": "{"}, "backend-data is not JSON"),
        ({"backend_data": "[" * 100000}, "backend-data is not JSON"),
    ],
)
def test_malformed_annotations_are_named(change: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lease_of(node(**{**GOOD, **change}), PREFIX, (4,))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "metadata": ANYTHING
            | st.fixed_dictionaries({"name": ANYTHING, "annotations": ANYTHING | st.just({f"{PREFIX}public-ip": 1})}),
            "spec": ANYTHING
            | st.fixed_dictionaries({}, optional={"podCIDR": ANYTHING, "podCIDRs": ANYTHING | st.just(["::/0", 7])}),
            "status": ANYTHING | st.fixed_dictionaries({"conditions": ANYTHING}),
        },
    ),
    st.sampled_from(["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "?"]),
)
def test_no_object_of_an_api_server_is_a_traceback(thing: Any, kind: str) -> None:
    book = Book(PREFIX, (4, 6), "a")
    book.apply(Event(kind, thing))
    book.add([thing])
    for look in (view, pod_cidrs, lambda one: own_subnets(one, CONFIG)):
        with contextlib.suppress(LeaseError, ConfigError):
            look(thing)


def test_the_book_tells_which_events_matter() -> None:
    book = Book(PREFIX, (4,), "own")
    assert book.apply(Event("ADDED", node("a", **GOOD)))
    before = book.leases
    assert not book.apply(Event("MODIFIED", {**node("a", **GOOD), "status": {"conditions": []}}))
    assert not book.apply(Event("BOOKMARK", {"metadata": {"resourceVersion": "7"}}))
    assert not book.apply(Event("ADDED", {"metadata": {"name": "bare"}}))
    assert book.leases is before
    assert book.apply(Event("MODIFIED", node("a", ("10.244.9.0/24",), **GOOD)))
    assert str(book.leases["a"].subnets[0]) == "10.244.9.0/24"
    assert [str(one.subnets[0]) for one in before.values()] == ["10.244.1.0/24"], "a picture is never changed"
    assert not book.apply(Event("ADDED", node("own")))
    assert book.own is not None
    assert not book.apply(Event("DELETED", node("own")))
    assert book.own is None
    assert book.apply(Event("DELETED", node("a", **GOOD)))
    assert not book.leases


def test_own_subnets_are_those_of_the_enabled_families() -> None:
    made = node("a", ("fd00:0:0:1::/64", "10.244.1.0/24"))
    assert [str(one) for one in own_subnets(made, CONFIG)] == ["10.244.1.0/24"]
    with pytest.raises(LeaseError) as caught:
        own_subnets({"metadata": {"name": "a"}, "spec": {}}, CONFIG)
    assert caught.value.message == 'node "a" pod cidr not assigned'
    with pytest.raises(LeaseError, match=r"10.244.1.0/24, 10.244.2.0/24 \(it may have one of IPv4 and one of IPv6\)"):
        own_subnets(node("a", ("10.244.1.0/24", "10.244.2.0/24")), CONFIG)
    older = {"metadata": {"name": "a"}, "spec": {"podCIDR": "10.244.3.0/24"}}
    assert [str(one) for one in own_subnets(older, CONFIG)] == ["10.244.3.0/24"]


def test_prescribed_addresses() -> None:
    words = {"node-public-ipv6": "2001:DB8::1", "public-ip-overwrite": " 203.0.113.7 ", "node-public-ip": ""}
    found = prescribed({PREFIX + word: value for word, value in words.items()}, PREFIX)
    assert found == ({6: "2001:db8::1"}, {4: "203.0.113.7"})
    with pytest.raises(ConfigError, match=r"public-ipv6-overwrite is '203\.0\.113\.7' "):
        prescribed({f"{PREFIX}public-ipv6-overwrite": "203.0.113.7"}, PREFIX)


def test_the_condition_is_that_of_the_go_daemon() -> None:
    assert condition(0) == {
        "status": {
            "conditions": [
                {
                    "type": "NetworkUnavailable",
                    "status": "False",
                    "reason": "FlannelIsUp",
                    "message": "Flannel is running on this node",
                    "lastHeartbeatTime": "1970-01-01T00:00:00Z",
                    "lastTransitionTime": "1970-01-01T00:00:00Z",
                }
            ]
        }
    }

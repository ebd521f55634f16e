"""What the watcher makes of the keys it is told about."""

from __future__ import annotations

import pytest

from flanneld.kube.node import lease_of
from flanneld.subnet.etcd_watch import Book
from flanneld.subnet.lease import Lease, decode_attributes
from flanneld.subnet.store import Change, Record

VALUE = '{"PublicIP":"192.168.60.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"aa"}}'


def record(name: str, value: str = VALUE, revision: int = 5, *, permanent: bool = False) -> Record:
    return Record(name, value, revision, permanent)


def book() -> Book:
    made = Book()
    config, leases = made.sort([made.entry(record("config", "{}")), made.entry(record("subnets/10.5.1.0-24"))])
    assert config is not None
    assert made.replace(config, leases)
    return made


def test_what_says_the_same_stays_the_same_object() -> None:
    made = book()
    before = made.picture().leases["10.5.1.0-24"]
    assert not made.apply([Change("subnets/10.5.1.0-24", record("subnets/10.5.1.0-24", revision=9))])
    config, leases = made.sort([made.entry(record("subnets/10.5.1.0-24", revision=10))])
    assert config is None
    assert not made.replace("{}", leases)
    assert made.picture().leases["10.5.1.0-24"] is before


def test_changes_of_any_kind_are_noticed() -> None:
    made = book()
    name = "subnets/10.5.1.0-24"
    assert made.apply([Change(name, record(name, VALUE.replace('"aa"', '"bb"')))])
    assert made.apply([Change(name, record(name, VALUE.replace('"aa"', '"bb"'), permanent=True))])
    assert made.apply([Change("config", record("config", '{"a":1}'))])
    assert not made.apply([Change("config", record("config", '{"a":1}'))])
    assert made.apply([Change(name, None)])
    assert not made.apply([Change(name, None)])
    assert not made.apply([Change("other/x", record("other/x")), Change("other/x", None)])
    assert made.picture() == ({}, '{"a":1}')


def test_a_value_that_becomes_unusable_is_no_lease_any_more(caplog: pytest.LogCaptureFixture) -> None:
    made = book()
    name = "subnets/10.5.1.0-24"
    for _ in range(3):
        made.apply([Change(name, record(name, "{}"))])
    assert made.picture().leases == {}
    assert caplog.messages == ["ignoring the key 10.5.1.0-24: its value is not that of a lease"]
    assert made.apply([Change(name, record(name))])


def test_pictures_do_not_change_afterwards() -> None:
    made = book()
    picture = made.picture()
    made.apply([Change("subnets/10.5.1.0-24", None)])
    assert set(picture.leases) == {"10.5.1.0-24"}


def test_a_flood_of_malformed_keys_is_bounded() -> None:
    made = book()
    for number in range(3000):
        made.apply([Change(f"subnets/x{number}", record(f"subnets/x{number}")), Change(f"subnets/x{number}", None)])
    assert len(made._warned) <= 1000
    assert not made._ignored


def test_a_lease_with_the_own_address_is_counted_until_it_goes(caplog: pytest.LogCaptureFixture) -> None:
    made = book()
    made.own = made.picture().leases["10.5.1.0-24"]
    twin = "subnets/10.5.2.0-24"
    assert made.apply([Change(twin, record(twin))])
    assert set(made.picture().leases) == {"10.5.1.0-24"}
    # Nothing changes, and it is still one.
    assert not made.apply([Change(twin, record(twin, revision=9))])
    names = ("config", "subnets/10.5.1.0-24", twin)
    entries = [made.entry(record(name, "{}" if name == "config" else VALUE)) for name in names]
    assert not made.replace("{}", made.sort(entries)[1])
    assert made._counted == {"malformed": 0, "own-address": 1}
    assert caplog.messages == ["ignoring the key 10.5.2.0-24: it announces this machine's own address 192.168.60.2"]
    made.apply([Change(twin, None)])
    assert made._counted == {"malformed": 0, "own-address": 0}


def full(made: Book, *leases: Record, spare_until: float | None = None) -> bool:
    entries = [made.entry(record("config", "{}")), *map(made.entry, leases)]
    config, found = made.sort(entries)
    return made.replace(config or "", found, spare_until)


def at(number: int, network: str = "") -> Record:
    return record(f"subnets/{network or f'10.5.{number}.0-24'}", VALUE.replace("60.2", f"60.{number}"))


def test_leases_that_the_store_lost_are_spared_until_others_take_their_place() -> None:
    made = Book()
    full(made, *(at(number) for number in range(1, 8)))
    assert full(made, spare_until=50.0)
    names = {f"10.5.{number}.0-24" for number in range(1, 8)}
    assert (set(made.picture().leases), made.spared_until) == (names, 50.0)
    made.apply([Change(at(1).name, at(1))])  # written again
    made.apply([Change("subnets/10.5.99.0-24", at(2, "10.5.99.0-24"))])  # the machine has another one
    made.apply([Change("subnets/10.5.3.0-24", at(77, "10.5.3.0-24"))])  # another machine has the subnet
    made.apply([Change("subnets/10.5.4.0-23", at(78, "10.5.4.0-23"))])  # or one around it
    made.apply([Change("subnets/10.5.6.0-24", None)])  # deleted for good
    wanted = {"10.5.1.0-24", "10.5.99.0-24", "10.5.3.0-24", "10.5.4.0-23", "10.5.7.0-24"}
    assert set(made.picture().leases) == wanted
    assert made.picture().leases["10.5.3.0-24"].attributes.public_ip == "192.168.60.77"
    # The store is lost once more: what was spared stays so.
    assert full(made, at(1), spare_until=70.0)
    assert (set(made.picture().leases), made.spared_until) == (wanted, 70.0)
    assert made.give_up()
    assert not made.give_up()
    assert (set(made.picture().leases), made.spared_until) == ({"10.5.1.0-24"}, float("inf"))


def test_a_full_reading_that_is_believed_spares_nothing() -> None:
    made = Book()
    full(made, at(1), at(2))
    assert full(made, at(1))
    assert set(made.picture().leases) == {"10.5.1.0-24"}
    full(made, at(1), spare_until=50.0)
    assert made.spared_until == float("inf"), "nothing was lost"


@pytest.mark.parametrize("deep", [21, 500, 900, 990, 5000])
def test_a_lease_that_is_nested_deep_is_none(deep: int) -> None:
    """It could be decoded, but neither compared nor shown."""
    value = '{"PublicIP":"192.168.60.2","BackendData":' + '{"a":' * deep + "1" + "}" * deep + "}"
    assert decode_attributes(value) is None
    annotations = {
        "f/kube-subnet-manager": "true",
        "f/public-ip": "192.0.2.2",
        "f/backend-data": "[" * deep + "]" * deep,
    }
    with pytest.raises(ValueError, match="is not JSON"):
        lease_of({"metadata": {"annotations": annotations}, "spec": {"podCIDR": "10.244.1.0/24"}}, "f/", (4,))


def test_names_of_data_are_shared() -> None:
    made = book()
    one, two = (made.entry(record(f"subnets/10.5.{n}.0-24"))[1] for n in (1, 2))
    assert isinstance(one, Lease)
    assert isinstance(two, Lease)
    assert one.attributes.backend_type is two.attributes.backend_type
    pairs = zip(one.attributes.backend_data, two.attributes.backend_data, strict=True)
    assert all(first is second for first, second in pairs)

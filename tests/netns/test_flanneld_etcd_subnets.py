"""The subnet manager against a real etcd, with the v3 and the v2 API."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from etcd_server import Relay, Server, bytes_of, server, settled, until
from flannel_lab import Tools

from flanneld.errors import ConfigError, LeaseError
from flanneld.metrics import FIGURES
from flanneld.options import EtcdOptions
from flanneld.subnet.config import parse_config
from flanneld.subnet.etcd import EtcdSubnetManager
from flanneld.subnet.etcd_watch import Timing
from flanneld.subnet.lease import Attributes, Holding

QUICK = Timing(ttl=30, announce_first=0.3, announce=5.0)
CONFIG = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory, tools: Tools) -> Iterator[Server]:
    with server(tools, tmp_path_factory.mktemp("etcd")) as made:
        yield made


class Net:
    """One network in etcd, in one of the APIs."""

    number = 0

    def __init__(self, etcd: Server, api: str) -> None:
        Net.number += 1
        self.etcd, self.api = etcd, api
        self.prefix = f"/net{Net.number}/network"
        self.configure(CONFIG)

    def configure(self, config: dict[str, Any]) -> None:
        self.config = parse_config(json.dumps(config))
        self.put("config", json.dumps(config))

    def put(self, name: str, value: str, ttl: int = 0) -> None:
        if self.api == "v2":
            self.etcd.v2.put(f"{self.prefix}/{name}", value, ttl)
        else:
            lease = self.etcd.client.grant(ttl)[0] if ttl else 0
            self.etcd.client.put(f"{self.prefix}/{name}", value, lease)

    def delete(self, name: str) -> None:
        found = self.get(name)
        assert found is not None
        client = self.etcd.v2 if self.api == "v2" else self.etcd.client
        assert client.delete(f"{self.prefix}/{name}", found[2])

    def get(self, name: str) -> Any:
        """Key, value, revision, and time to live (v2) or lease (v3)."""
        return (self.etcd.v2 if self.api == "v2" else self.etcd.client).get(f"{self.prefix}/{name}")

    def names(self) -> list[str]:
        if self.api == "v2":
            _, nodes = self.etcd.v2.collect(f"{self.prefix}/subnets", lambda node: node.key)
            return sorted(key.rpartition("/")[2] for key in nodes)
        return sorted(item.key.rpartition("/")[2] for item in self.etcd.client.list(f"{self.prefix}/subnets/").items)

    def manager(self, url: str = "", margin: int = 10, timing: Timing = QUICK) -> Followed:
        return Followed(EtcdOptions((url or self.etcd.url,)), self.prefix, margin, self.api, timing)


class Followed(EtcdSubnetManager):
    """Keeps what a daemon would be told."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.changes = 0
        self.reasons: list[str] = []
        self.changed = self._count
        self.lost = self.reasons.append
        self.holding: Holding | None = None

    def _count(self) -> None:
        self.changes += 1

    def join(self, net: Net, address: str, mac: str = "aa", previous: tuple[Any, ...] = ()) -> str:
        """Start as the daemon does; returns the last part of the key."""
        self.config_text()
        self.leases()
        attributes = Attributes(address, "vxlan", {"VNI": 1, "VtepMAC": mac})
        self.holding = self.acquire(net.config, attributes, previous)
        self.start(self.holding)
        return str(self.holding.lease.subnets[0]).replace("/", "-")

    @property
    def seen(self) -> set[str]:
        return set(self.picture.leases) if self.picture is not None else set()


@pytest.fixture(params=["v3", "v2"])
def net(request: pytest.FixtureRequest, etcd: Server) -> Net:
    return Net(etcd, request.param)


@pytest.fixture
def relay(etcd: Server) -> Iterator[Relay]:
    made = Relay(etcd.url)
    yield made
    made.close()


def value(address: str, mac: str = "bb") -> str:
    return (
        f'{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan",'
        f'"BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}'
    )


def test_keys_and_values_are_the_go_daemons(etcd: Server) -> None:
    net = Net(etcd, "v3")
    key = net.manager().join(net, "192.168.60.2", "2a:18:f8:5f:7b:0a")
    assert bytes_of(etcd, f"{net.prefix}/subnets/{key}") == (
        b'{"PublicIP":"192.168.60.2","PublicIPv6":null,"BackendType":"vxlan",'
        b'"BackendData":{"VNI":1,"VtepMAC":"2a:18:f8:5f:7b:0a"}}'
    )
    assert key.startswith("10.244.")
    assert key.endswith(".0-24")


def test_dual_stack_keys_and_no_subnet_twice(etcd: Server) -> None:
    net = Net(etcd, "v3")
    net.configure({"Network": "10.5.0.0/16", "EnableIPv6": True, "IPv6Network": "fc00::/60", "IPv6SubnetLen": 64})
    holdings: list[Holding] = []

    def starter(number: int) -> None:
        attributes = Attributes(f"192.168.60.{number}", "vxlan", public_ipv6=f"fd00::{number:x}")
        holdings.append(net.manager().acquire(net.config, attributes, ()))

    race(starter, 10)
    # 15 IPv6 subnets and hundreds of IPv4 ones: nearly every race is about the IPv6 ones.
    assert len({holding.lease.subnets[1] for holding in holdings}) == 10
    assert len(net.names()) == 10
    assert all("&fc00" in name and name.endswith("-64") for name in net.names())


def race(function: Callable[[int], None], count: int) -> None:
    failures: list[BaseException] = []
    barrier = threading.Barrier(count)

    def one(number: int) -> None:
        try:
            barrier.wait(20)
            function(number)
        except Exception as error:  # noqa: BLE001 - it is shown by the caller
            failures.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(1, count + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures, failures


def test_twenty_starters_for_twenty_one_subnets(net: Net) -> None:
    net.configure({"Network": "10.6.0.0/16", "SubnetMin": "10.6.1.0", "SubnetMax": "10.6.21.0"})
    holdings: list[Holding] = []

    def starter(number: int) -> None:
        manager = net.manager()
        manager.leases()
        holdings.append(manager.acquire(net.config, Attributes(f"192.168.61.{number}", "vxlan"), ()))

    race(starter, 20)
    assert len({holding.lease.subnets for holding in holdings}) == 20
    assert len(net.names()) == 20


def test_out_of_subnets_until_one_is_freed(net: Net) -> None:
    net.configure({"Network": "10.7.0.0/28"})
    for number in (1, 2, 3):
        net.manager().acquire(net.config, Attributes(f"192.168.62.{number}"), ())
    late = net.manager()
    late.leases()
    with pytest.raises(LeaseError, match=r"out of subnets: all from 10\.7\.0\.4 to 10\.7\.0\.12 are leased"):
        late.acquire(net.config, Attributes("192.168.62.4"), ())
    net.delete("subnets/10.7.0.8-30")
    assert late.acquire(net.config, Attributes("192.168.62.4"), ()).lease.name == "10.7.0.8/30"


def test_ipv6_alone_is_refused(net: Net) -> None:
    config = parse_config('{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fc00::/48"}')
    with pytest.raises(ConfigError, match="always have an IPv4 subnet"):
        net.manager().acquire(config, Attributes("192.168.62.4"), ())


def test_no_configuration(net: Net) -> None:
    net.delete("config")
    with pytest.raises(ConfigError, match=rf"no key {net.prefix}/config .*with the {net.api} API"):
        net.manager().config_text()


@pytest.mark.parametrize("api", ["v3", "v2"])
def test_the_root_as_prefix(tools: Tools, tmp_path: Path, api: str) -> None:
    with server(tools, tmp_path) as made:
        net = Net(made, api)
        net.prefix = ""
        manager = net.manager()
        with pytest.raises(ConfigError, match="no key /config"):
            manager.config_text()
        net.configure(CONFIG)
        own = manager.join(net, "192.168.60.1")
        net.put("subnets/10.244.250.0-24", value("192.168.60.2"))
        until(3, lambda: manager.seen == {own, "10.244.250.0-24"}, lambda: f"{manager.seen} {manager.trouble}")
        assert net.get(f"subnets/{own}") is not None


def test_a_configuration_in_the_other_store_is_named(etcd: Server) -> None:
    for api, other, said in (("v3", "v2", "`flanneld migrate` copies it"), ("v2", "v3", "leave out -etcd-api=v2")):
        manager = Followed(EtcdOptions((etcd.url,)), Net(etcd, other).prefix, 10, api, QUICK)
        with pytest.raises(ConfigError, match=said):
            manager.config_text()


def test_the_configuration_costs_one_request_also_when_it_is_missing(etcd: Server, relay: Relay) -> None:
    net = Net(etcd, "v3")
    net.delete("config")
    manager = net.manager(relay.url)
    for _ in range(5):
        with pytest.raises(ConfigError):
            manager.config_text()
    assert len(relay.requests) == 6, relay.requests  # one of them is of the v2 store


def test_nothing_is_leased_from_another_configuration_than_the_one_that_is_there(net: Net) -> None:
    manager, before = net.manager(), net.config
    manager.leases()
    net.configure({**CONFIG, "Network": "10.8.0.0/16"})
    assert manager.acquire(before, Attributes("192.168.62.4"), ()), "as it was when the leases were read"
    other = net.manager()
    for _ in range(2):
        other.leases()
        with pytest.raises(ConfigError, match="was changed meanwhile"):
            other.acquire(before, Attributes("192.168.62.5"), ())
    net.delete("config")
    with pytest.raises(ConfigError, match="has lost"):
        other.acquire(net.config, Attributes("192.168.62.5"), ())
    net.configure({**CONFIG, "Network": "10.8.0.0/16"})
    assert other.acquire(net.config, Attributes("192.168.62.5"), ()).lease.name.startswith("10.8.")


def test_an_own_lease_that_was_deleted_at_the_start_is_not_complained_about(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    net.put("subnets/10.9.1.0-24", value("192.168.63.7"), 100)
    net.put("subnets/10.9.2.0-24", value("192.168.63.7"))
    manager = net.manager()
    own = manager.join(net, "192.168.63.7")
    until(3, lambda: manager.seen == {own}, "the picture")
    settled(1)
    told = [text for text in caplog.messages if "10.9." in text]
    assert told == [
        "lease 10.9.1.0/24 does not fit the network configuration; deleting it",
        "the reservation 10.9.2.0/24 does not fit the network configuration; not used",
        "ignoring the key 10.9.2.0-24: it announces this machine's own address 192.168.63.7",
    ]


def test_of_several_own_keys_that_fit_the_first_is_taken_whatever_the_order_of_writing(net: Net) -> None:
    names = [f"10.244.{number}.0-24" for number in range(20, 28)]
    for name in (*names[4:], *names[:4]):
        net.put(f"subnets/{name}", value("192.168.63.8"), 100)
    for _ in range(3):
        assert net.manager().join(net, "192.168.63.8") == names[0]


def test_what_etcd_has_written_after_all_is_not_written_again(net: Net) -> None:
    manager = net.manager(timing=Timing(ttl=30, announce_first=60))
    key = manager.join(net, "192.168.66.1", "aa")
    settled(1)
    keeper = manager._keeper
    assert keeper is not None
    keeper._wanted = Attributes("192.168.66.1", "vxlan", {"VNI": 1, "VtepMAC": "cc"})  # its write was not answered
    keeper._announce_at = time.monotonic() - 5
    net.put(f"subnets/{key}", value("192.168.66.1", "cc"), 30)
    until(3, lambda: manager.held().lease.attributes.backend_data["VtepMAC"] == "cc", "it is taken over")  # type: ignore[union-attr]
    before = net.get(f"subnets/{key}")[2]
    settled(3)
    assert net.get(f"subnets/{key}")[2] == before
    assert keeper._announce_at > time.monotonic()


def test_the_expiry_is_told_at_once_and_not_of_a_reservation(net: Net) -> None:
    FIGURES.drop("flannel_lease_expires_seconds")
    net.manager(timing=Timing()).join(net, "192.168.66.1")
    until(1, lambda: FIGURES.value("flannel_lease_expires_seconds") > 86000, "the figure")
    net.put("subnets/10.244.9.0-24", '{"PublicIP":"192.168.64.1"}')
    net.manager(timing=Timing()).join(net, "192.168.64.1")
    until(1, lambda: "\nflannel_lease_expires_seconds " not in FIGURES.text(), "there is none")


def test_the_lease_of_the_same_address_is_reused_and_its_old_etcd_lease_ended(etcd: Server) -> None:
    net = Net(etcd, "v3")
    first = net.manager().acquire(net.config, Attributes("192.168.63.1", "vxlan", {"VtepMAC": "aa"}), ())
    before = len(etcd.ask("/lease/leases", {}).get("leases", []))
    again = net.manager().acquire(net.config, Attributes("192.168.63.1", "vxlan", {"VtepMAC": "cc"}), ())
    assert again.lease.subnets == first.lease.subnets
    assert again.lease.etcd_lease != first.lease.etcd_lease
    assert len(etcd.ask("/lease/leases", {}).get("leases", [])) == before
    assert etcd.client.lease(first.lease.etcd_lease)[0] == -1


def test_an_etcd_lease_on_which_other_keys_hang_is_left(etcd: Server) -> None:
    net = Net(etcd, "v3")
    held = net.manager().acquire(net.config, Attributes("192.168.63.1"), ()).lease
    etcd.client.put("/somebody/elses", "x", held.etcd_lease)
    net.manager().acquire(net.config, Attributes("192.168.63.1"), ())
    assert etcd.client.get("/somebody/elses") is not None


def test_the_previous_subnet_is_taken_when_free(net: Net) -> None:
    previous = (parse_config('{"Network": "10.244.77.0/24"}').networks[4],)
    first = net.manager().acquire(net.config, Attributes("192.168.63.1"), previous)
    assert first.lease.subnets == previous
    assert net.manager().acquire(net.config, Attributes("192.168.63.2"), previous).lease.subnets != previous


def test_a_lease_outside_of_the_network_is_replaced_but_not_a_reservation(net: Net) -> None:
    net.put("subnets/10.9.1.0-24", value("192.168.63.1"), 100)
    net.put("subnets/10.9.2.0-24", value("192.168.63.1"))
    held = net.manager().acquire(net.config, Attributes("192.168.63.1"), ())
    assert net.names() == sorted([str(held.lease.subnets[0]).replace("/", "-"), "10.9.2.0-24"])


def test_a_reservation_stays_one(net: Net) -> None:
    net.put("subnets/10.244.9.0-24", '{"PublicIP":"192.168.64.1"}')
    manager = net.manager()
    assert manager.join(net, "192.168.64.1") == "10.244.9.0-24"
    assert manager.holding is not None
    assert manager.holding.expires is None
    assert manager.holding.lease.permanent
    settled(1)  # the announcement has been written, too
    found = net.get("subnets/10.244.9.0-24")
    assert found[1] == value("192.168.64.1", "aa")
    assert not found[3]


def test_pictures_are_alike_and_keep_their_objects(net: Net) -> None:
    one, two = net.manager(), net.manager()
    first, second = one.join(net, "192.168.65.1"), two.join(net, "192.168.65.2")
    until(5, lambda: one.seen == two.seen == {first, second}, lambda: f"{one.seen} {two.seen} {one.trouble}")
    settled(1)  # announcements change revisions only
    changes, before = one.changes, one.picture
    assert before is not None
    net.put(f"subnets/{second}", net.get(f"subnets/{second}")[1], 50)
    settled(0.5)
    assert one.changes == changes, "a renewal is no change"
    net.put("subnets/10.244.200.0-24", value("192.168.65.9"), 50)
    until(2, lambda: "10.244.200.0-24" in one.seen, "a new lease is seen")
    after = one.picture
    assert after is not None
    assert all(after.leases[name] is before.leases[name] for name in before.leases)
    net.put("subnets/10.244.200.0-24", value("192.168.65.9", "cc"), 50)
    until(2, lambda: one.picture.leases["10.244.200.0-24"].attributes.backend_data["VtepMAC"] == "cc", "the change")
    net.delete("subnets/10.244.200.0-24")
    until(2, lambda: "10.244.200.0-24" not in one.seen, "it is gone")
    assert one.picture.config == json.dumps(CONFIG)
    assert set(one.leases()) == {first, second}
    net.configure({**CONFIG, "Network": "10.240.0.0/12"})
    until(2, lambda: "10.240.0.0/12" in one.picture.config, "the configuration is followed")
    assert not one.trouble


def test_a_lease_that_expires_is_gone(net: Net) -> None:
    one = net.manager()
    one.join(net, "192.168.65.1")
    net.put("subnets/10.244.201.0-24", value("192.168.65.8"), 2)
    until(2, lambda: "10.244.201.0-24" in one.seen, "seen")
    until(8, lambda: "10.244.201.0-24" not in one.seen, "expired")


def test_the_own_lease_is_renewed_before_it_expires(net: Net) -> None:
    FIGURES.set("flannel_lease_renewals_total", 0)
    manager = net.manager(margin=3, timing=Timing(ttl=5, announce_first=0.2, announce=60))
    key = manager.join(net, "192.168.65.1")
    time.sleep(8)
    assert net.names() == [key]
    assert FIGURES.value("flannel_lease_renewals_total") >= 2
    assert not manager.reasons
    assert manager.changes <= 2


def test_foreign_and_corrupt_entries_are_ignored_and_counted(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    net.put("subnets/hello", "x")
    net.put("subnets/10.244.5.7-24", value("192.168.65.8"))
    net.put("subnets/10.244.6.0-24", '{"PublicIP":null}')
    net.put("subnets/10.244.7.0-24", value("192.168.65.1", "dd"))
    net.put("subnets/10.244.8.0-24", value("192.168.65.1", "ee"))
    net.put("other", "x")
    manager = net.manager()
    own = manager.join(net, "192.168.65.1")
    until(2, lambda: manager.picture is not None, "a picture")
    assert manager.seen == {own}
    assert 'flannel_leases_ignored{reason="malformed"} 3' in FIGURES.text()
    assert 'flannel_leases_ignored{reason="own-address"} 1' in FIGURES.text()
    net.put("subnets/hello", "y")
    settled()
    told = [record.getMessage() for record in caplog.records if "ignoring" in record.getMessage()]
    assert len(told) == len(set(told)) == 4, told
    net.delete("subnets/hello")
    until(2, lambda: 'ignored{reason="malformed"} 2' in FIGURES.text(), "counted down")


def test_the_own_key_deleted_is_written_anew(net: Net) -> None:
    manager = net.manager()
    key = manager.join(net, "192.168.66.1")
    settled(1)
    net.delete(f"subnets/{key}")
    until(3, lambda: net.names() == [key], "it is back")
    assert not manager.reasons
    assert net.get(f"subnets/{key}")[3]


def test_the_own_key_taken_is_lost(net: Net) -> None:
    manager = net.manager()
    key = manager.join(net, "192.168.66.1")
    settled(1)
    net.put(f"subnets/{key}", value("192.168.66.2"), 50)
    until(5, lambda: manager.reasons, "it is lost")
    assert "was taken over by 192.168.66.2" in manager.reasons[0]
    settled()
    assert len(manager.reasons) == 1
    assert net.get(f"subnets/{key}")[1] == value("192.168.66.2")


def test_two_with_one_address_do_not_fight(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    one, two = net.manager(timing=Timing()), net.manager(timing=Timing())
    key = one.join(net, "192.168.66.1", "aa")
    assert two.join(net, "192.168.66.1", "bb") == key
    time.sleep(8)
    told = [text for text in caplog.messages if f"the lease {key.replace('-', '/')} was changed" in text]
    assert 2 <= len(told) <= 6, told
    assert "if another machine announces the address 192.168.66.1, too, give one of them another -public-ip" in told[0]
    assert not one.reasons + two.reasons


def test_what_is_announced_can_change(net: Net) -> None:
    manager = net.manager()
    key = manager.join(net, "192.168.66.1", "aa")
    manager.announce(Attributes("192.168.66.77", "vxlan", {"VNI": 1, "VtepMAC": "cc"}))
    until(2, lambda: net.get(f"subnets/{key}")[1] == value("192.168.66.77", "cc"), "written")
    settled(1)
    assert not manager.reasons
    assert manager.seen == {key}


def test_a_store_without_configuration_is_not_believed(net: Net) -> None:
    one, two = net.manager(), net.manager()
    first, second = one.join(net, "192.168.67.1"), two.join(net, "192.168.67.2")
    until(3, lambda: one.seen == {first, second}, "both")
    settled(1)
    net.delete("config")
    until(2, lambda: "lost" in one.trouble, "trouble")
    net.delete(f"subnets/{second}")
    settled(1)
    assert one.seen == {first, second}
    net.configure(CONFIG)
    until(10, lambda: not one.trouble, "it is believed again")
    until(10, lambda: net.names() == sorted([first, second]), "and the lost lease is back")
    assert not one.reasons + two.reasons


def test_compaction_while_disconnected(etcd: Server, relay: Relay) -> None:
    net = Net(etcd, "v3")
    one = net.manager(relay.url)
    own = one.join(net, "192.168.68.1")
    net.put("subnets/10.244.210.0-24", value("192.168.68.2"))
    net.put("subnets/10.244.211.0-24", value("192.168.68.3"))
    until(3, lambda: len(one.seen) == 3, "all")
    settled(1)
    kept = one.picture.leases["10.244.211.0-24"]
    relay.refuse = True
    relay.cut()
    net.delete("subnets/10.244.210.0-24")
    net.put("subnets/10.244.212.0-24", value("192.168.68.4"))
    for number in range(5):
        net.put("other", str(number))
    etcd.compact()
    time.sleep(1)
    assert one.trouble
    assert "10.244.210.0-24" in one.seen
    relay.refuse = False
    until(10, lambda: one.seen == {own, "10.244.211.0-24", "10.244.212.0-24"}, lambda: f"{one.seen} {one.trouble}")
    assert one.picture.leases["10.244.211.0-24"] is kept


def test_v2_has_forgotten_what_happened(etcd: Server, relay: Relay) -> None:
    net = Net(etcd, "v2")
    one = net.manager(relay.url)
    own = one.join(net, "192.168.68.1")
    until(3, lambda: one.seen == {own}, "all")
    settled(1)
    relay.refuse = True
    relay.cut()
    net.put("subnets/10.244.212.0-24", value("192.168.68.4"))
    client = etcd.v2
    for number in range(1100):
        client.put("/unrelated", str(number))
    relay.refuse = False
    until(10, lambda: one.seen == {own, "10.244.212.0-24"}, lambda: f"{one.seen} {one.trouble}")


@pytest.mark.parametrize("api", ["v3", "v2"])
def test_requests_at_start_do_not_grow_with_the_leases(etcd: Server, relay: Relay, api: str) -> None:
    counts = []
    for leases in (10, 2000):
        net = Net(etcd, api)
        net.configure({**CONFIG, "Network": "10.0.0.0/8"})
        client = etcd.v2 if api == "v2" else etcd.client
        for number in range(leases):
            name = f"10.{100 + number // 250}.{number % 250}.0-24"
            client.put(f"{net.prefix}/subnets/{name}", value(f"172.16.{number // 250}.{number % 250}"))
        relay.requests.clear()
        manager = net.manager(relay.url, timing=Timing())
        manager.join(net, "192.168.69.1")
        until(5, lambda m=manager, n=leases: len(m.seen) == n + 1, "a picture with all")
        until(5, lambda: sum("watch" in one or "wait=" in one for one in relay.requests), "a watch")
        settled()
        counts.append(list(relay.requests))
    assert len(counts[0]) == len(counts[1]) <= 6, counts


def test_a_burst_is_gathered(etcd: Server) -> None:
    net = Net(etcd, "v3")
    net.configure({**CONFIG, "Network": "10.0.0.0/8"})
    one = net.manager(timing=Timing())
    one.join(net, "192.168.70.1")
    settled()
    changes, started = one.changes, time.monotonic()
    client = etcd.client
    for number in range(1000):
        name = f"10.{100 + number // 250}.{number % 250}.0-24"
        client.put(f"{net.prefix}/subnets/{name}", value(f"172.16.{number // 250}.{number % 250}"))
    took = time.monotonic() - started
    until(5, lambda: len(one.seen) == 1001, "all are seen")
    assert one.changes - changes <= took / 0.02 + 3


def test_a_single_change_is_told_at_once(etcd: Server) -> None:
    net = Net(etcd, "v3")
    one = net.manager(timing=Timing())
    one.join(net, "192.168.70.1")
    settled()
    times = []
    told = threading.Event()
    one.changed = told.set
    for number in range(10):
        told.clear()
        started = time.monotonic()
        net.etcd.client.put(f"{net.prefix}/subnets/10.244.{number + 1}.0-24", value(f"172.16.0.{number}", str(started)))
        assert told.wait(2)
        times.append(time.monotonic() - started)
        time.sleep(0.05)
    assert sorted(times)[5] < 0.05, times

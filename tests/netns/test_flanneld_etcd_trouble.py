"""What goes wrong between flanneld and etcd: certificates, passwords, members that are down, lost data."""

from __future__ import annotations

import ipaddress
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from etcd_server import Authority, Relay, Server, free_port, server, settled, three, until
from flannel_lab import Tools
from test_flanneld_etcd_subnets import CONFIG, Followed, Net, value

from flanneld.errors import EtcdError, EtcdUnavailableError, UsageError
from flanneld.etcd.transport import Cluster
from flanneld.etcd.v3 import EtcdClient, encode, range_end
from flanneld.options import EtcdOptions
from flanneld.subnet.etcd import store_class
from flanneld.subnet.etcd_watch import Timing
from flanneld.subnet.lease import Attributes, Lease
from flanneld.subnet.store3 import StoreV3, _Grant


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"), "ours")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other"), "theirs")


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, tools: Tools, pki: Authority) -> Iterator[Server]:
    certificate, key = pki.issue("etcd")
    flags = [f"--cert-file={certificate}", f"--key-file={key}", f"--trusted-ca-file={pki.ca}", "--client-cert-auth"]
    with server(tools, tmp_path_factory.mktemp("secure"), *flags, scheme="https") as made:
        yield made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tools: Tools) -> Iterator[Server]:
    with server(tools, tmp_path_factory.mktemp("plain")) as made:
        yield made


def complaint(url: str, cafile: Path | str = "", pair: tuple[Path, Path] | None = None) -> str:
    options = EtcdOptions((url,), str(cafile), *(map(str, pair) if pair else ("", "")))
    with pytest.raises((EtcdError, UsageError)) as caught:
        EtcdClient(Cluster(options)).get("x")
    return str(caught.value)


def works(url: str, cafile: Path | str = "", pair: tuple[Path, Path] | None = None) -> None:
    options = EtcdOptions((url,), str(cafile), *(map(str, pair) if pair else ("", "")))
    assert EtcdClient(Cluster(options)).get("x") is None


def test_certificates_that_etcd_does_not_accept(secure: Server, pki: Authority, other: Authority) -> None:
    works(secure.url, pki.ca, pki.issue("flanneld"))
    foreign = complaint(secure.url, pki.ca, other.issue("flanneld"))
    assert "the server does not accept our client certificate" in foreign
    assert "signed by the CA that the server trusts" in foreign
    expired = complaint(secure.url, pki.ca, pki.issue("old", days=-1))
    assert "the server does not accept our client certificate" in expired
    none = complaint(secure.url, pki.ca)
    assert "client certificate" in none


def test_certificates_of_etcd_that_we_do_not_accept(
    secure: Server, pki: Authority, other: Authority, tools: Tools, tmp_path: Path
) -> None:
    unknown = complaint(secure.url, other.ca, pki.issue("flanneld"))
    assert "this side does not accept the server's certificate" in unknown
    assert "a CA file must hold the CA that signed it" in unknown
    cases = (
        ("expired", pki.issue("etcd", days=-1), "it has expired: renew it on the server"),
        ("elsewhere", pki.issue("etcd", "192.0.2.9"), "ask for the server by an address that its certificate has"),
    )
    for name, (certificate, key), hint in cases:
        directory = tmp_path / name
        directory.mkdir()
        with server(tools, directory, f"--cert-file={certificate}", f"--key-file={key}", scheme="https") as made:
            said = complaint(made.url, pki.ca)
        assert "this side does not accept the server's certificate" in said
        assert hint in said


def test_a_ca_alone_is_enough_where_no_client_certificate_is_wanted(
    tools: Tools, tmp_path: Path, pki: Authority
) -> None:
    certificate, key = pki.issue("etcd")
    with server(tools, tmp_path, f"--cert-file={certificate}", f"--key-file={key}", scheme="https") as made:
        works(made.url, pki.ca)


def test_tls_and_plain_ports_confused(secure: Server, plain: Server, pki: Authority) -> None:
    said = complaint(plain.url.replace("http:", "https:"), pki.ca)
    assert "use http://" in said
    assert "use https://" in complaint(secure.url.replace("https:", "http:"))


def test_files_that_cannot_be_used(secure: Server, pki: Authority, other: Authority, tmp_path: Path) -> None:
    pair = pki.issue("flanneld")
    assert "-etcd-cafile /nowhere cannot be used" in complaint(secure.url, "/nowhere", pair)
    junk = tmp_path / "junk"
    junk.write_text("no certificate")
    assert f"-etcd-cafile {junk} cannot be used" in complaint(secure.url, junk, pair)
    mismatch = complaint(secure.url, pki.ca, (pair[0], other.issue("flanneld")[1]))
    assert "the key must belong to the certificate" in mismatch
    assert "cannot be used" in complaint(secure.url, pki.ca, (pair[0], junk))
    assert "-etcd-keyfile /nowhere" in complaint(secure.url, pki.ca, (pair[0], Path("/nowhere")))


def test_renewed_certificates_are_used_without_a_restart(
    secure: Server, pki: Authority, other: Authority, tmp_path: Path
) -> None:
    files = tmp_path / "now.crt", tmp_path / "now.key"

    def install(pair: tuple[Path, Path]) -> None:
        for source, target in zip(pair, files, strict=True):
            shutil.copy(source, target)

    install(other.issue("flanneld"))
    client = EtcdClient(Cluster(EtcdOptions((secure.url,), str(pki.ca), *map(str, files))))
    with pytest.raises(EtcdUnavailableError):
        client.get("x")
    install(pki.issue("flanneld"))
    assert client.get("x") is None
    client.close()
    files[1].write_text("half a rene")  # while a renewal is under way the old ones are used
    assert client.get("x") is None


def test_the_manager_with_tls(secure: Server, pki: Authority) -> None:
    certificate, key = pki.issue("flanneld")
    options = EtcdOptions((secure.url,), str(pki.ca), str(certificate), str(key))
    EtcdClient(Cluster(options)).put("/tls/config", '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}')
    manager = Followed(options, "/tls", 10, "v3", Timing())
    net = Net.__new__(Net)
    from flanneld.subnet.config import parse_config  # noqa: PLC0415

    net.config = parse_config(manager.config_text())
    own = manager.join(net, "192.168.60.1")
    EtcdClient(Cluster(options)).put("/tls/subnets/10.244.250.0-24", value("192.168.60.2"))
    until(3, lambda: manager.seen == {own, "10.244.250.0-24"}, "both")


@pytest.mark.parametrize("api", ["v3", "v2"])
def test_username_and_password(tools: Tools, tmp_path: Path, api: str) -> None:
    with server(tools, tmp_path) as made:
        net = Net(made, api)
        client = made.client
        client._call("user", "/auth/user/add", {"name": "root", "password": "rootpw"})
        client._call("role", "/auth/role/add", {"name": "root"})
        client._call("grant", "/auth/user/grant", {"user": "root", "role": "root"})
        client._call("user", "/auth/user/add", {"name": "flannel", "password": "secret"})
        if api == "v2":
            body = b'{"user":"root","password":"rootpw"}'
            v2_auth(made, "/v2/auth/users/root", body)
            v2_auth(made, "/v2/auth/enable", b"")
        else:
            client._call("enable", "/auth/enable", {})
        good = EtcdOptions((made.url,), username="root", password="rootpw")
        manager = Followed(good, net.prefix, 10, api, Timing(ttl=30, announce_first=0.3))
        own = manager.join(net, "192.168.60.1")
        settled(1)
        assert manager.seen == {own}
        assert not manager.trouble
        bad = Followed(EtcdOptions((made.url,), username="root", password="wrong"), net.prefix, 10, api)
        with pytest.raises(EtcdError, match="check -etcd-username and -etcd-password"):
            bad.config_text() if api == "v3" else bad.acquire(net.config, manager.holding.lease.attributes, ())
        assert "wrong" not in repr(bad._cluster.options)
        if api == "v3":
            poor = Followed(EtcdOptions((made.url,), username="flannel", password="secret"), net.prefix, 10, api)
            with pytest.raises(EtcdError, match="grant the user's role readwrite"):
                poor.config_text()
            none = Followed(EtcdOptions((made.url,)), net.prefix, 10, api)
            with pytest.raises(EtcdError, match="-etcd-username and -etcd-password"):
                none.config_text()
            # Tokens are forgotten by a restart; a new one is fetched.
            made.stop()
            made.start()
            EtcdClient(Cluster(good)).put(f"{net.prefix}/subnets/10.244.250.0-24", value("192.168.60.2"))
            until(15, lambda: "10.244.250.0-24" in manager.seen, lambda: manager.trouble)


def rsa_key(directory: Path) -> tuple[Path, Path]:
    """A private and a public key in the forms that etcd signs tokens with."""
    key = rsa.generate_private_key(65537, 2048)
    private, public = directory / "private.pem", directory / "public.pem"
    form = serialization.PrivateFormat.TraditionalOpenSSL
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def test_authentication_that_is_switched_on_and_changed(tools: Tools, tmp_path: Path) -> None:
    private, public = rsa_key(tmp_path)
    token = f"--auth-token=jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=10m"
    with server(tools, tmp_path, token) as made:
        net = Net(made, "v3")
        ask = made.client._call
        root = EtcdOptions((made.url,), username="root", password="rootpw")
        early = EtcdClient(Cluster(root))
        relay = Relay(made.url)
        assert early.get(f"{net.prefix}/config") is not None, "authentication is off: the name does not matter"
        counted = EtcdClient(Cluster(root._replace(endpoints=(relay.url,))))
        for _ in range(5):
            counted.get("x")
        assert len(relay.requests) == 6, "that it is off is asked once"
        relay.close()
        for name, password in (("root", "rootpw"), ("reader", "secret")):
            ask("user", "/auth/user/add", {"name": name, "password": password})
            ask("role", "/auth/role/add", {"name": name})
            ask("grant", "/auth/user/grant", {"user": name, "role": name})
        below = {"permType": "READ", "key": encode(net.prefix), "range_end": range_end(net.prefix)}
        ask("perm", "/auth/role/grant", {"name": "reader", "perm": below})
        ask("enable", "/auth/enable", {})
        assert early.get(f"{net.prefix}/config") is not None, "it was switched on"
        admin = EtcdClient(Cluster(root))
        admin._call("user", "/auth/user/add", {"name": "other", "password": "x"})
        assert early.get(f"{net.prefix}/config") is not None, "the users were changed, which makes old tokens useless"

        reader = Followed(EtcdOptions((made.url,), username="reader", password="secret"), net.prefix, 10, "v3")
        for _ in range(5):
            reader.leases()
            with pytest.raises(EtcdError, match="grant the user's role readwrite"):
                reader.acquire(net.config, Attributes("192.168.60.1"), ())
        assert len(admin._call("leases", "/kv/lease/leases", {}).get("leases", [])) == 1, "one is used again and again"
        admin._call("disable", "/auth/disable", {})
        assert early.get(f"{net.prefix}/config") is not None, "it was switched off"
        reader.leases()
        assert reader.acquire(net.config, Attributes("192.168.60.1"), ()).lease.etcd_lease
        assert len(made.ask("/kv/lease/leases", {})["leases"]) == 1


def test_an_etcd_lease_that_is_gone_is_not_used_again(plain: Server) -> None:
    store = store_class("v3")(Cluster(plain.options()), "/gone")
    assert isinstance(store, StoreV3)
    store._unused = _Grant(12345, 60, time.monotonic())
    lease = Lease((ipaddress.ip_network("10.3.4.0/24"),), Attributes("192.168.60.1"))
    with pytest.raises(EtcdError, match="lease not found"):
        store.create(lease, "x", 60)
    written = store.create(lease, "x", 60)
    assert written is not None
    assert written.lease != 12345


def v2_auth(made: Server, path: str, body: bytes) -> None:
    import urllib.request  # noqa: PLC0415

    request = urllib.request.Request(made.url + path, body, {"Content-Type": "application/json"}, method="PUT")  # noqa: S310
    with urllib.request.urlopen(request, timeout=5):  # noqa: S310
        pass


@pytest.mark.parametrize("api", ["v3", "v2"])
def test_etcd_down_for_ten_seconds(tools: Tools, tmp_path: Path, api: str, caplog: pytest.LogCaptureFixture) -> None:
    with server(tools, tmp_path) as made:
        net = Net(made, api)
        manager = net.manager(timing=Timing(ttl=60, announce_first=0.3, announce=3))
        own = manager.join(net, "192.168.60.1")
        net.put("subnets/10.244.250.0-24", value("192.168.60.2"))
        until(3, lambda: len(manager.seen) == 2, "both")
        made.stop()
        caplog.clear()
        before, started = time.thread_time() + time.process_time(), time.monotonic()
        time.sleep(10)
        used = (time.thread_time() + time.process_time() - before) / (time.monotonic() - started)
        assert manager.seen == {own, "10.244.250.0-24"}
        assert manager.trouble
        assert used < 0.05, f"{used:.3f} of a core"
        told = [
            text for text in caplog.messages if own.split("-", maxsplit=1)[0] in text or "cannot be followed" in text
        ]
        assert len(told) <= 4, caplog.messages
        made.start()
        net.put("subnets/10.244.251.0-24", value("192.168.60.3"))
        until(15, lambda: len(manager.seen) == 3, lambda: f"{manager.seen} {manager.trouble}")
        until(40, lambda: not manager.trouble, lambda: manager.trouble)
        assert not manager.reasons


def test_an_older_backup_is_noticed(tools: Tools, tmp_path: Path) -> None:
    with server(tools, tmp_path) as made:
        net = Net(made, "v3")
        manager = net.manager(timing=Timing(announce_first=0.2, grace=3))
        own = manager.join(net, "192.168.60.1")
        net.put("subnets/10.244.250.0-24", value("192.168.60.2"))
        until(3, lambda: len(manager.seen) == 2, "both")
        settled(1)
        made.stop()
        backup = tmp_path / "backup"
        shutil.copytree(made.data, backup)
        made.start()
        until(15, lambda: not manager.trouble, "it follows again")
        net.put("subnets/10.244.251.0-24", value("192.168.60.3"))
        net.delete("subnets/10.244.250.0-24")
        for number in range(20):
            net.put("other", str(number))
        until(5, lambda: manager.seen == {own, "10.244.251.0-24"}, "the present")
        made.restart_with(backup)
        until(15, lambda: "10.244.250.0-24" in manager.seen, lambda: f"{manager.seen} {manager.trouble}")
        assert "10.244.251.0-24" in manager.seen, "its machine gets some time"
        until(5, lambda: manager.seen == {own, "10.244.250.0-24"}, lambda: f"{manager.seen} {manager.trouble}")
        net.put("subnets/10.244.252.0-24", value("192.168.60.4"))
        until(5, lambda: "10.244.252.0-24" in manager.seen, "it is followed")


@pytest.mark.parametrize("api", ["v3", "v2"])
def test_an_etcd_that_comes_back_empty_takes_nothing_down(tools: Tools, tmp_path: Path, api: str) -> None:
    with server(tools, tmp_path) as made:
        net = Net(made, api)
        managers = [net.manager(timing=Timing(announce_first=0.2, grace=8)) for _ in range(3)]
        living = {manager.join(net, f"192.168.60.{n + 1}") for n, manager in enumerate(managers)}
        dead = "10.244.250.0-24"
        net.put(f"subnets/{dead}", value("192.168.60.9"))
        until(3, lambda: all(manager.seen == {*living, dead} for manager in managers), "all")
        settled(1)
        (tmp_path / "empty").mkdir()
        made.restart_with(tmp_path / "empty")
        until(15, lambda: all("lost" in manager.trouble for manager in managers), lambda: managers[0].trouble)
        time.sleep(8)  # the pauses of the keepers have become long
        net.configure(CONFIG)
        written, back = time.monotonic(), 0.0
        while time.monotonic() < written + 12:
            assert all(manager.seen >= living for manager in managers), "none is forgotten for a moment"
            if not back and set(net.names()) == living:
                back = time.monotonic() - written
                assert all(dead in manager.seen for manager in managers)
            time.sleep(0.05)
        assert 0 < back < 8, "the keepers do not sleep on"
        until(6, lambda: all(manager.seen == living for manager in managers), "the grace of the dead one is over")
        assert not any(manager.reasons or manager.trouble for manager in managers)


def test_failover_between_three(tools: Tools, tmp_path: Path) -> None:
    with three(tools, tmp_path) as members:
        net = Net(members[1], "v3")
        dead = f"http://127.0.0.1:{free_port()}"
        options = EtcdOptions((dead, *(member.url for member in members)))
        manager = Followed(options, net.prefix, 10, "v3", Timing(announce_first=0.3))
        own = manager.join(net, "192.168.60.1")
        until(3, lambda: manager.seen == {own}, "own")
        assert manager._cluster.current == 1
        members[0].stop()  # the one that is in use
        net.put("subnets/10.244.250.0-24", value("192.168.60.2"))
        until(10, lambda: "10.244.250.0-24" in manager.seen, lambda: manager.trouble)
        assert manager._cluster.current in {2, 3}
        members[0].start()
        # Without a quorum nobody answers, and nothing is lost.
        members[0].stop()
        members[2].stop()
        settled(3)
        assert manager.seen == {own, "10.244.250.0-24"}
        members[2].launch()
        members[2].wait()
        net.put("subnets/10.244.251.0-24", value("192.168.60.3"))
        until(15, lambda: "10.244.251.0-24" in manager.seen, lambda: manager.trouble)
        assert not manager.reasons


@pytest.mark.parametrize("api", ["v3", "v2"])
def test_a_member_that_hangs_is_left(tools: Tools, tmp_path: Path, api: str) -> None:
    with three(tools, tmp_path) as members:
        net = Net(members[2], api)
        options = EtcdOptions(tuple(member.url for member in members))
        manager = Followed(options, net.prefix, 10, api, Timing(announce_first=60, quiet=1))
        own = manager.join(net, "192.168.60.1")
        settled(2.5)  # quiet watches are opened again and again, and nobody is told
        assert (manager.changes, manager.trouble) == (1, "")
        assert members[0].process is not None
        members[0].process.send_signal(signal.SIGSTOP)
        try:
            settled(0.2)
            until(10, lambda: members[2].healthy, "another leader")
            net.put("subnets/10.244.250.0-24", value("192.168.60.2"))
            until(20, lambda: manager.seen == {own, "10.244.250.0-24"}, lambda: manager.trouble)
        finally:
            members[0].process.send_signal(signal.SIGCONT)


def test_paths_of_other_versions(plain: Server) -> None:
    client = plain.client
    client._base = "/v3beta"  # etcd 3.3 has these only, 3.4 has both
    assert client.put("/beta", "x", client.grant(60)[0])
    found = client.get("/beta")
    assert found is not None
    assert client.lease(found.lease)[1] == ("/beta",)
    watch = client.watch("/beta", found.revision)
    assert watch.next(2) is not None
    client.revoke(found.lease)
    assert client._base == "/v3beta"
    client._base = "/v4"  # what is not there leads to what is
    assert client.get("/beta") is None
    assert client._base == "/v3"


def test_nobody_answers() -> None:
    urls = tuple(f"http://127.0.0.1:{free_port()}" for _ in range(2))
    with pytest.raises(EtcdUnavailableError) as caught:
        EtcdClient(Cluster(EtcdOptions(urls))).get("x")
    assert all(f"{url}: connection refused" in str(caught.value) for url in urls)


def test_v2_is_off(tools: Tools, tmp_path: Path) -> None:
    with server(tools, tmp_path, "--enable-v2=false") as made:
        manager = Followed(EtcdOptions((made.url,)), "/x", 10, "v2")
        with pytest.raises(EtcdError, match="--enable-v2"):
            manager.config_text()


def test_the_connection_is_kept(plain: Server) -> None:
    relay = Relay(plain.url)
    try:
        client = EtcdClient(Cluster(EtcdOptions((relay.url,))))
        for _ in range(20):
            client.get("x")
        assert len(relay.requests) == 20
        assert len(relay._open) == 2
        relay.cut()
        assert client.get("x") is None, "a connection that was closed meanwhile is no failure"
    finally:
        relay.close()

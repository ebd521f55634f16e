"""`flanneld migrate`, from the v2 store of a real etcd to its v3 store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from etcd_server import Server, bytes_of, server
from flannel_lab import Tools
from test_flanneld_etcd_subnets import value

from flanneld import migrate
from flanneld.errors import EtcdUnavailableError

CONFIG = '{"Network":"10.3.0.0/16"}'


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory, tools: Tools) -> Iterator[Server]:
    with server(tools, tmp_path_factory.mktemp("migrate")) as made:
        yield made


class Migration:
    number = 0

    def __init__(self, etcd: Server, capsys: pytest.CaptureFixture[str]) -> None:
        Migration.number += 1
        self.etcd, self.capsys = etcd, capsys
        self.prefix = f"/migrate{Migration.number}"

    def old(self, name: str, text: str, ttl: int = 0) -> None:
        self.etcd.v2.put(f"{self.prefix}/{name}", text, ttl)

    def run(self, *flags: str, status: int = 0) -> str:
        words = [f"-etcd-endpoints={self.etcd.url}", f"-etcd-prefix={self.prefix}", *flags]
        assert migrate.run(words, {}) == status
        return self.capsys.readouterr().out

    def new(self) -> dict[str, str]:
        items = self.etcd.client.list(f"{self.prefix}/").items
        return {item.key[len(self.prefix) + 1 :]: item.value for item in items}


@pytest.fixture
def migration(etcd: Server, capsys: pytest.CaptureFixture[str]) -> Migration:
    return Migration(etcd, capsys)


def test_everything_is_copied_once(migration: Migration) -> None:
    old_daemons = '{"PublicIP":"192.168.60.2","BackendType":"vxlan","BackendData":{"VtepMAC":"2a:18:f8:5f:7b:0a"}}'
    migration.old("config", CONFIG)
    migration.old("subnets/10.3.5.0-24", old_daemons, 4000)
    migration.old("subnets/10.3.6.0-24", value("192.168.60.3"))
    migration.old("subnets/10.3.7.0-24&fc00::-64", value("192.168.60.4"), 100)
    dry = migration.run("-dry-run")
    assert "subnets/10.3.6.0-24: would be copied without expiry" in dry
    assert migration.new() == {}

    said = migration.run()
    assert "config: copied without expiry" in said
    assert len(migration.new()) == 4
    assert bytes_of(migration.etcd, f"{migration.prefix}/subnets/10.3.5.0-24") == old_daemons.encode()
    client = migration.etcd.client
    lives = client.get(f"{migration.prefix}/subnets/10.3.5.0-24")
    assert lives is not None
    assert 3900 <= client.lease(lives.lease)[0] <= 4000
    reserved = client.get(f"{migration.prefix}/subnets/10.3.6.0-24")
    assert reserved is not None
    assert reserved.lease == 0

    before = client.list(f"{migration.prefix}/").items
    leases = migration.etcd.ask("/lease/leases", {})["leases"]
    again = migration.run()
    assert again.count("is there already") == 4
    assert client.list(f"{migration.prefix}/").items == before
    assert migration.etcd.ask("/lease/leases", {})["leases"] == leases


def test_what_v3_has_stays_unless_forced(migration: Migration) -> None:
    migration.old("config", CONFIG)
    migration.old("subnets/10.3.5.0-24", value("192.168.60.2"), 100)
    migration.etcd.client.put(f"{migration.prefix}/config", '{"Network":"10.0.0.0/8"}')
    said = migration.run(status=1)
    assert "config: not copied: v3 has another value; -force writes over it" in said
    assert migration.new()["config"] == '{"Network":"10.0.0.0/8"}'
    assert "config: copied" in migration.run("-force")
    assert migration.new()["config"] == CONFIG


def test_what_would_be_in_conflict_is_not_copied(migration: Migration) -> None:
    migration.old("config", CONFIG)
    migration.old("subnets/10.3.5.0-24", value("192.168.60.2"), 100)
    migration.old("subnets/10.3.8.0-24", value("192.168.60.5"), 100)
    migration.old("subnets/hello", "x")
    migration.old("notes/mine", "x")
    migration.etcd.client.put(f"{migration.prefix}/subnets/10.3.4.0-22", value("192.168.60.9"))
    migration.etcd.client.put(f"{migration.prefix}/subnets/10.3.9.0-24", value("192.168.60.5"))
    said = migration.run("-force", status=1)
    assert "subnets/10.3.5.0-24: not copied: v3 has subnets/10.3.4.0-22, which overlaps" in said
    assert "subnets/10.3.8.0-24: not copied: v3 has subnets/10.3.9.0-24 for 192.168.60.5 already" in said
    assert "subnets/hello: not copied: it is malformed" in said
    assert "notes/mine: not copied: it does not belong to flannel" in said
    assert set(migration.new()) == {"config", "subnets/10.3.4.0-22", "subnets/10.3.9.0-24"}


def test_nothing_to_copy_is_said(migration: Migration) -> None:
    assert "check -etcd-prefix" in migration.run(status=1)
    migration.etcd.client.put(f"{migration.prefix}/config", CONFIG)
    assert "check -etcd-prefix" in migration.run(), "there is one in v3: it was migrated long ago"


def test_help_and_no_etcd(migration: Migration, capsys: pytest.CaptureFixture[str]) -> None:
    assert migrate.run(["-help"], {}) == 0
    told = capsys.readouterr().err
    assert all(f"\n  -{flag.name}" in told for flag in migrate.FLAGS)
    assert "-etcd-endpoints" in told
    assert "-etcd-api" not in told
    with pytest.raises(EtcdUnavailableError):
        migrate.run(["-etcd-endpoints=http://127.0.0.1:1"], {})
    del migration

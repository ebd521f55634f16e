"""A lab is computed from nothing but the inventory."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from kubewright.errors import UserError
from kubewright.lab.inventory import read_lab
from kubewright.lab.model import lab_spec

INVENTORY = """
all:
  vars:
    prefix: 10.1.2
  hosts:
    localhost: {ansible_connection: local}
    one: {ansible_host: "{{ prefix }}.10"}
    two: {ansible_host: "{{ prefix }}.11"}
  children:
    etcd: {hosts: {one: , two: }}
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    (tmp_path / "hosts.yml").write_text(INVENTORY)
    return tmp_path


def test_machines_are_the_hosts_of_the_inventory_with_templated_addresses(inventory: Path) -> None:
    spec = read_lab(inventory)
    assert [(machine.name, str(machine.address)) for machine in spec.machines] == [
        ("one", "10.1.2.10"),
        ("two", "10.1.2.11"),
    ]
    assert str(spec.gateway) == "10.1.2.1/24"


def test_a_hosts_file_names_the_same_lab_as_its_directory(inventory: Path) -> None:
    assert read_lab(inventory / "hosts.yml") == read_lab(inventory)


def test_keys_and_secrets_beside_the_hosts_file_are_not_read_as_hosts(inventory: Path) -> None:
    before = read_lab(inventory)
    for name in ("secrets", "pki"):
        (inventory / name).mkdir()
        (inventory / name / "token").write_text("Xv9secret\n")
    (inventory / "known_hosts").write_text("one ssh-ed25519 AAAA\n")
    assert read_lab(inventory) == before


def test_a_directory_without_a_hosts_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no hosts file"):
        read_lab(tmp_path)


def test_lab_network_of_the_group_variables_wins(inventory: Path) -> None:
    (inventory / "group_vars").mkdir()
    (inventory / "group_vars/all.yml").write_text("lab_network: 10.1.0.0/16\n")
    spec = read_lab(inventory)
    assert spec.network == IPv4Network("10.1.0.0/16")
    assert str(spec.gateway) == "10.1.0.1/16"


def test_inventories_in_different_places_are_different_labs(tmp_path: Path) -> None:
    first = lab_spec(tmp_path / "a", {"one": "10.0.0.10"})
    second = lab_spec(tmp_path / "b", {"one": "10.0.0.10"})
    assert first.namespace != second.namespace
    assert first.machines[0].directory != second.machines[0].directory


def test_a_link_to_an_inventory_is_the_same_lab(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    hosts = {"one": "10.0.0.10"}
    assert lab_spec(tmp_path / "link", hosts) == lab_spec(tmp_path / "a", hosts)


@pytest.mark.parametrize(
    ("hosts", "network", "words"),
    [
        ({}, None, ["names no machines"]),
        ({"one": ""}, None, ["one: ansible_host is ''"]),
        ({"one": "10.0.0.300", "two": "x"}, None, ["10.0.0.300", "two"]),
        ({"one": "10.0.0.1"}, None, ["address of the lab's bridge"]),
        ({"one": "10.0.0.255"}, None, ["not a host address"]),
        ({"one": "10.0.0.5", "two": "10.0.0.5"}, None, ["two and one have the same address"]),
        ({"one": "10.0.0.5", "two": "10.9.0.5"}, None, ["two", "not a host address of the lab's network 10.0.0.0/24"]),
        ({"My_Host": "10.0.0.5"}, None, ["'My_Host'"]),
        ({"../x": "10.0.0.5"}, None, ["'../x'"]),
        ({"one": "10.0.0.5"}, "10.0.0.5/24", ["lab_network '10.0.0.5/24'", "host bits"]),
        ({"one": "10.0.0.5"}, "10.0.0.4/30", ["no room"]),
    ],
)
def test_bad_inventories_are_refused_with_the_value_seen(
    tmp_path: Path, hosts: dict[str, str], network: str | None, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        lab_spec(tmp_path, hosts, network)
    for word in words:
        assert word in str(caught.value)


def test_unknown_machines_are_named_together_with_the_known_ones(tmp_path: Path) -> None:
    spec = lab_spec(tmp_path, {"one": "10.0.0.10", "two": "10.0.0.11"})
    with pytest.raises(UserError, match="three") as caught:
        spec.select(["one", "three"])
    assert "one, two" in caught.value.hint
    assert spec.select([]) == spec.machines
    assert [machine.name for machine in spec.select(["two", "two"])] == ["two"]


def test_a_missing_inventory_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no inventory"):
        read_lab(tmp_path / "none")


def test_an_unreadable_inventory_is_said(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("all: [")
    with pytest.raises(UserError):
        read_lab(tmp_path)

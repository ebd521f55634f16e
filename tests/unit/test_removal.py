"""Taking components away: what is decided, and what is done to real files, processes and mounts."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubewright.machine import (
    component,
    ending,
    files,
    generations,
    leavings,
    lock,
    mounts,
    placed,
    places,
    processes,
    removal,
    restore,
    rules,
    sysprep,
    systemd,
    turnover,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files are owned by root, as on machines")

SAVED = """\
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:MINE - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 192.0.2.0/24 ! -o br0 -j MASQUERADE
-A KUBE-SERVICES -d 10.0.0.1/32 -j MINE
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -p tcp -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
"""


def _ours(chain: str) -> bool:
    return chain.startswith(("KUBE-", "DOCKER"))


def test_chains_go_with_the_rules_that_lead_there_and_others_stay() -> None:
    cut = rules.cut(SAVED, _ours, lambda rule: "docker0" in rule)
    assert cut.script.splitlines() == [
        "*nat",
        ":KUBE-SERVICES - [0:0]",
        '-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        "-D POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
        "-X KUBE-SERVICES",
        "COMMIT",
        "*filter",
        ":DOCKER-USER - [0:0]",
        "-D FORWARD -j DOCKER-USER",
        "-X DOCKER-USER",
        "COMMIT",
    ]
    assert cut.kept == ()


def test_rules_of_an_administrator_keep_the_chain_that_is_for_them() -> None:
    text = SAVED.replace("-A DOCKER-USER -j RETURN", "-A DOCKER-USER -s 192.0.2.1/32 -j DROP\n-A DOCKER-USER -j RETURN")
    cut = rules.cut(text, _ours, lambda _: False)
    assert "DOCKER-USER" not in cut.script
    assert cut.kept == ("the chain DOCKER-USER with rules of an administrator",)


def test_nothing_to_cut_is_an_empty_script() -> None:
    assert rules.cut(SAVED, lambda _: False, lambda _: False).script == ""


@pytest.mark.parametrize(
    ("rule", "gone"),
    [
        ("-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", True),
        ("-A FORWARD -i docker0 ! -o docker0 -j ACCEPT", True),
        ("-A FORWARD -i docker0 -o docker0 -j ACCEPT", True),
        ("-A POSTROUTING -s 172.18.0.0/16 ! -o br-0123456789ab -j MASQUERADE", True),
        ("-A FORWARD -i br0 -o br0 -j ACCEPT", False),
        ("-A FORWARD -s 192.0.2.1/32 -o docker0 -j DROP", False),
    ],
)
def test_rules_that_docker_writes_outside_of_its_chains(rule: str, gone: bool) -> None:
    _, loose = removal.Removal(["docker"], places.Options())._rule_tests("docker", {})
    assert loose(rule) is gone


def test_rules_of_a_docker_that_was_there_before_ours_stay() -> None:
    ours, loose = removal.Removal(["docker"], places.Options())._rule_tests(
        "docker", {"before": {"devices": ["docker0"]}}
    )
    assert not loose("-A FORWARD -i docker0 -o docker0 -j ACCEPT")
    assert not ours("DOCKER")


def test_mounts_below_a_directory_deepest_first() -> None:
    table = (
        "1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / /var/lib/kubelet rw - x x rw\n"
        "3 2 0:3 / /var/lib/kubelet/a rw - x x rw\n4 3 0:4 / /var/lib/kubelet/a/b\\040c rw - x x rw\n"
        "5 1 0:5 / /var/lib/kubelet-of-others rw - x x rw\n"
    )
    assert mounts.below("/var/lib/kubelet", table) == ["/var/lib/kubelet/a/b c", "/var/lib/kubelet/a"]


def test_scopes_that_a_kubelet_made() -> None:
    table = (
        "init.scope   loaded active running System and Service Manager\n"
        "run-r1.scope loaded active running Kubernetes systemd probe\n"
        "run-r2.scope loaded active running Kubernetes transient mount for /var/lib/kubelet/pods/x/volumes/y\n"
        "run-r3.scope loaded active running /usr/bin/sleep 100\n"
    )
    assert ending.kubelet_scopes(table) == ["run-r1.scope", "run-r2.scope"]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    point = tmp_path / "tree" / "pod" / "volume"
    point.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(point)], check=True)
    yield point
    subprocess.run(["umount", str(point)], check=False, capture_output=True)


def test_a_tree_with_a_volume_in_it_is_not_touched_until_that_is_unmounted(mounted: Path, tmp_path: Path) -> None:
    (mounted / "data").write_text("x")
    tree = tmp_path / "tree"
    (tree / "other").write_text("x")
    with pytest.raises(OSError, match="is still mounted there; nothing of it was removed"):
        mounts.remove_tree(str(tree))
    assert (tree / "other").exists()
    for point in mounts.below(str(tree), mounts.now()):
        mounts.unmount(point)
    mounts.remove_tree(str(tree))
    assert not tree.exists()


def test_a_volume_that_a_link_leads_to_is_unmounted_and_never_emptied(
    machine: Path, mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usual way to move Docker's or the kubelet's directory to another disk."""
    (mounted / "data").write_text("of somebody")
    root = machine / "kubelet"
    root.symlink_to(mounted.parents[1])
    catalogue = {"a": leavings.Leavings("", (), (str(root),)), "pki": leavings.Leavings()}
    monkeypatch.setattr(removal, "CATALOGUE", catalogue)
    with pytest.raises(OSError, match="is still mounted there; nothing of it was removed"):
        mounts.remove_tree(str(root))
    bring(machine, "a", [str(machine / "d" / "a")])
    busy = removal.run(["a"], places.Options(), check=True)
    assert f"mount {mounted}" in busy["steps"]
    # Where it cannot be unmounted, what is in it stays.
    with monkeypatch.context() as patch:
        patch.setattr(mounts, "unmount", lambda _: (_ for _ in ()).throw(OSError("busy")))
        assert removal.run(["a"], places.Options(), check=False)["failures"]
    assert (mounted / "data").read_text() == "of somebody"
    assert removal.run(["a"], places.Options(), check=False)["failures"] == []
    # What somebody had made before stays: the link and the directory, empty.
    assert root.is_symlink()
    assert list(root.iterdir()) == []
    assert removal.run(["all"], places.Options(), check=False)["steps"] == []


def test_docker_s_data_on_another_disk_goes_and_the_link_there_stays(machine: Path) -> None:
    (machine / "disk" / "volumes" / "v").mkdir(parents=True)
    (machine / "disk" / "foreign").write_text("x")
    (machine / "docker").symlink_to("disk")
    bring(machine, "docker", [str(machine / "cfg")])
    options = places.Options(data=True, docker_data=str(machine / "docker"))
    assert removal.run(["docker"], options, check=False)["failures"] == []
    assert [one.name for one in (machine / "docker").iterdir()] == ["foreign"]


def test_of_a_directory_that_is_a_mount_the_content_goes(mounted: Path) -> None:
    (mounted / "d").mkdir()
    (mounted / "f").write_text("x")
    mounts.remove_tree(str(mounted))
    assert mounted.is_dir()
    assert not list(mounted.iterdir())


def test_processes_are_found_by_control_group_and_end_though_they_ignore_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # A group of this test's own: this host may have pods.
    group = re.compile(f"/kubewright-test-{os.getpid()}/")
    script = "trap '' TERM; echo ready; while :; do sleep 1; done"
    one = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)
    try:
        assert one.stdout
        one.stdout.readline()
        real = files.read
        line = f"9:name=systemd:/kubewright-test-{os.getpid()}/pod1/c1\n"
        monkeypatch.setattr(files, "read", lambda path: line if path == f"/proc/{one.pid}/cgroup" else real(path))
        assert processes.within(group) == [one.pid]
        begin = time.monotonic()
        assert processes.end(group, 0.3) == []
        assert time.monotonic() - begin < 20
    finally:
        one.kill()
        one.wait()
    assert one.returncode == -9


@pytest.mark.parametrize(
    ("path", "matches"),
    [
        ("/kubepods/burstable/podx/c", True),
        ("/kubepods.slice/kubepods-podx.slice/docker-c.scope", True),
        ("/docker/" + "0" * 64, True),
        ("/system.slice/docker-" + "0" * 64 + ".scope", True),
        ("/system.slice/docker.service", False),
        ("/machine.slice/libpod-1.scope", False),
        ("/dockerfiles/x", False),
        ("/docker/buildkit/0123", True),
        ("/system.slice/docker-registry.service", False),
        ("/system.slice/kubepods-exporter.service", False),
        # Of containers of others, and of somebody's rootless Docker.
        ("/lxc.payload.c1/docker/" + "0" * 64, False),
        ("/lxc.payload.c1/kubepods/burstable/podx/c", False),
        ("/user.slice/user-1000.slice/user@1000.service/user.slice/docker-" + "0" * 64 + ".scope", False),
    ],
)
def test_control_groups_of_containers(path: str, matches: bool) -> None:
    assert bool(processes.CONTAINERS.search(path)) is matches


@pytest.mark.parametrize(
    ("unit", "slice_", "path", "matches"),
    [
        ("docker.service", "system.slice", "/system.slice/docker.service", True),
        ("docker.service", "", "/system.slice/docker.service/init", True),
        ("docker.service", "a-b.slice", "/a.slice/a-b.slice/docker.service", True),
        ("docker.service", "-.slice", "/docker.service", True),
        ("docker.service", "system.slice", "/system.slice/docker.service.d", False),
        (
            "docker.service",
            "system.slice",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/docker.service",
            False,
        ),
        ("etcd.service", "system.slice", "/lxc.payload.c1/system.slice/etcd.service", False),
        ("etcd.service", "", "/machine.slice/machine-x.scope/payload/system.slice/etcd.service", False),
        ("etcd.service", "system.slice", "/system.slice/nested.service/system.slice/etcd.service", False),
    ],
)
def test_the_control_group_of_a_unit_is_that_of_this_machine_s_systemd(
    unit: str, slice_: str, path: str, matches: bool
) -> None:
    assert bool(processes.of_unit(unit, slice_).search(path)) is matches


@pytest.mark.parametrize("root", ["", "/lxc/c1"])
def test_control_groups_begin_where_those_of_the_machine_do(tmp_path: Path, root: str) -> None:
    """A machine that is a container, of versions 1 and 2 of control groups, without a namespace of its own."""
    groups = {
        "1": f"1:name=systemd:{root}/init.scope\n2:memory:{root or '/'}\n",
        "20": f"1:name=systemd:{root}/system.slice/etcd.service\n2:memory:{root}/system.slice\n",
        "21": f"1:name=systemd:{root}/system.slice\n2:memory:{root}/system.slice/etcd.service\n",
        "22": f"1:name=systemd:{root}/lxc.payload.c2/system.slice/etcd.service\n",
        "23": "1:name=systemd:/../system.slice/etcd.service\n",
    }
    for number, text in groups.items():
        (tmp_path / number).mkdir()
        (tmp_path / number / "cgroup").write_text(text)
        (tmp_path / number / "stat").write_text(f"{number} (a) S 1")
    assert processes.within(processes.of_unit("etcd.service", ""), str(tmp_path)) == [20, 21]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine below tmp_path: store, records and units; systemd and the network are this host's, and not touched."""
    monkeypatch.setattr(component, "STORE", str(tmp_path / "store"))
    monkeypatch.setattr(component, "RECORDS", str(tmp_path / "state" / "components"))
    monkeypatch.setattr(placed, "PLACED", str(tmp_path / "state" / "placed.json"))
    monkeypatch.setattr(sysprep, "RECORD", str(tmp_path / "state" / "sysprep.json"))
    monkeypatch.setattr(files, "DIGESTS", str(tmp_path / "state" / "digests.json"))
    monkeypatch.setattr(files.DigestCache.__init__, "__defaults__", (str(tmp_path / "state" / "digests.json"),))
    monkeypatch.setattr(places, "STATE", str(tmp_path / "state"))
    monkeypatch.setattr(places, "SNAPSHOTS", str(tmp_path / "snapshots"))
    monkeypatch.setattr(generations, "BEFORE", str(tmp_path / "state" / "before"))
    monkeypatch.setattr(lock, "LOCK", str(tmp_path / "run" / "lock"))
    monkeypatch.setattr(removal, "_UNITS", str(tmp_path / "units"))
    monkeypatch.setattr(removal, "OWN_DIRECTORIES", ())
    monkeypatch.setattr(removal, "CATALOGUE", {"pki": leavings.Leavings()})
    monkeypatch.setattr(restore, "OWN_FILES", ())
    monkeypatch.setattr(sysprep, "read", lambda _: "")
    return tmp_path


def declared(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "directories": [],
        "binaries": [],
        "files": [],
        "absent": [],
        "inputs": [],
        "reload": [],
        "check": [],
        "unit": "",
        "health": {"timeout": 1, "checks": []},
        "member": None,
        "images": [],
        **more,
    }


def bring(root: Path, name: str, paths: list[str], binary: str = "") -> None:
    contents = dict.fromkeys(paths, "eA==")
    wires = [
        {"path": p, "sha256": "", "mode": "0644", "owner": "root", "group": "root", "secret": False, "restart": True}
        for p in paths
    ]
    binaries, staged = [], {}
    if binary:
        (root / "staged").write_text("#!/bin/sh\n")
        digest = files.sha256_of(str(root / "staged"))
        staged = {digest: str(root / "staged")}
        binaries = [{"name": binary, "version": "1", "sha256": digest, "link": str(root / "bin" / f"{name}-{binary}")}]
    turnover.apply_all([declared(name, files=wires, binaries=binaries)], contents, staged)


def test_a_component_goes_with_its_directories_and_leaves_those_of_others(machine: Path) -> None:
    (machine / "etc").mkdir()
    (machine / "etc" / "foreign").write_text("x")
    bring(machine, "a", [str(machine / "etc" / "a"), str(machine / "own" / "sub" / "a")], "tool")
    (machine / "own" / "foreign").write_text("x")
    found = removal.run(["a"], places.Options(), check=True)
    assert f"file {machine}/etc/a" in found["steps"]
    assert (machine / "etc" / "a").exists()
    found = removal.run(["a"], places.Options(), check=False)
    assert found["failures"] == []
    assert sorted(str(p.relative_to(machine)) for p in machine.rglob("*") if p.is_file()) == [
        "etc/foreign",
        "own/foreign",
    ]
    assert not (machine / "own" / "sub").exists()
    assert not (machine / "state").exists()
    assert removal.run(["all"], places.Options(), check=False)["steps"] == []


def test_a_binary_that_another_component_uses_stays(machine: Path) -> None:
    bring(machine, "a", [str(machine / "a")], "tool")
    bring(machine, "b", [str(machine / "b")], "tool")
    assert removal.run(["a"], places.Options(), check=False)["failures"] == []
    assert (machine / "bin" / "b-tool").read_text() == "#!/bin/sh\n"
    assert not (machine / "bin" / "a-tool").is_symlink()
    assert removal.run(["all"], places.Options(), check=False)["failures"] == []
    assert not (machine / "store").exists()


def test_what_was_there_before_is_put_back(machine: Path) -> None:
    there, link = machine / "daemon.json", machine / "link"
    there.write_text("of others")
    there.chmod(0o640)
    link.symlink_to("elsewhere")
    bring(machine, "a", [str(there), str(link)])
    bring(machine, "a", [str(there), str(link)])
    assert there.read_text() == "x"
    assert removal.run(["a"], places.Options(), check=False)["failures"] == []
    assert (there.read_text(), there.stat().st_mode & 0o777) == ("of others", 0o640)
    assert str(link.readlink()) == "elsewhere"


def test_an_interrupted_removal_goes_on(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(machine / "d" / name) for name in ("one", "two", "three")]
    bring(machine, "a", paths)
    real = os.unlink
    monkeypatch.setattr(
        removal.os, "unlink", lambda path: (_ for _ in ()).throw(KeyboardInterrupt) if path == paths[2] else real(path)
    )
    with pytest.raises(KeyboardInterrupt):
        removal.run(["a"], places.Options(), check=False)
    monkeypatch.setattr(removal.os, "unlink", real)
    assert removal.present() == ["a"]
    assert removal.run(["a"], places.Options(), check=False)["failures"] == []
    assert list(machine.rglob("*")) == []


def test_a_lock_and_pictures_of_upgrades_go_with_the_last_component(machine: Path) -> None:
    bring(machine, "a", [str(machine / "d" / "a")])
    bring(machine, "b", [str(machine / "d" / "b")])
    for path in ("state/before/a.json", "state/before/gone.json", "run/lock"):
        files.write_atomic(str(machine / path), b"{}", 0o600)
    assert removal.run(["a"], places.Options(), check=False)["failures"] == []
    assert not (machine / "state" / "before" / "a.json").exists()
    assert (machine / "run" / "lock").exists()
    assert removal.run(["all"], places.Options(), check=False)["failures"] == []
    assert list(machine.rglob("*")) == []
    # Nor is it something that is left of a cluster.
    files.write_atomic(str(machine / "run" / "lock"), b"{}", 0o600)
    assert removal.run(["all"], places.Options(), check=False)["steps"] == []
    assert list(machine.rglob("*")) == []


def test_data_of_etcd_goes_only_when_asked_with_snapshots_and_what_restores_moved_aside(machine: Path) -> None:
    data = machine / "data"
    bring(machine, "etcd", [str(machine / "cfg")])
    ours = ["data/member/wal/0", "data/member.before-20260101T000000Z/x", "data/kubewright-restore.json"]
    ours += ["snapshots/etcd-20260101T000000Z-r5.db", "snapshots/.partial-1.db", "state/snapshots/before-upgrade.db"]
    ours += ["snapshots/kubewright-scratch/data/member/snap/db"]
    for path in [*ours, "snapshots/of-others"]:
        files.write_atomic(str(machine / path), b"x", 0o600)
    options = places.Options(etcd_data=str(data))
    found = removal.run(["etcd"], options, check=False)
    assert found["left"] == [f"{machine}/{path}: data of etcd" for path in ("data", "state/snapshots", "snapshots")]
    assert all((machine / path).exists() for path in ours)
    bring(machine, "etcd", [str(machine / "cfg")])
    found = removal.run(["all"], options._replace(data=True), check=False)
    assert (found["failures"], found["left"]) == ([], [])
    assert [p for p in machine.rglob("*") if p.is_file()] == [machine / "snapshots" / "of-others"]
    assert not data.exists()
    assert not (machine / "state").exists()


def test_data_that_a_part_kept_goes_with_the_whole_and_data_of_others_stays(machine: Path) -> None:
    bring(machine, "etcd", [str(machine / "cfg")])
    bring(machine, "b", [str(machine / "e")])
    ours = machine / "data" / "member" / "wal"
    snapshot = machine / "state" / "snapshots" / "before-upgrade.db"
    # This Docker was never ours.
    theirs = machine / "docker" / "overlay2" / "x"
    for path in (ours, snapshot, theirs, machine / "data" / "foreign"):
        files.write_atomic(str(path), b"x", 0o600)
    options = places.Options(etcd_data=str(machine / "data"), docker_data=str(machine / "docker"))
    part = removal.run(["etcd"], options, check=False)
    assert (part["failures"], part["member"]) == ([], True)
    again = removal.run(["etcd"], options, check=False)
    assert (again["steps"], again["left"]) == ([], part["left"])
    # Also where the inventory does not tell any more where it is.
    elsewhere = options._replace(data=True, etcd_data=str(machine / "elsewhere"))
    assert removal.run(["b"], elsewhere, check=True)["member"]
    whole = removal.run(["all"], elsewhere, check=False)
    assert (whole["components"], whole["failures"], whole["left"]) == (["b", "etcd"], [], [])
    assert not whole["member"]
    assert [p for p in sorted(machine.rglob("*")) if p.is_file()] == [machine / "data" / "foreign", theirs]
    assert not (machine / "state").exists()


def test_the_last_component_that_goes_in_part_leaves_the_record_of_its_data(machine: Path) -> None:
    bring(machine, "docker", [str(machine / "cfg")])
    files.write_atomic(str(machine / "docker" / "overlay2" / "x"), b"x", 0o600)
    files.write_atomic(str(machine / "units" / "docker.service"), b"[Service]\nExecStart=/usr/bin/dockerd\n", 0o644)
    options = places.Options(docker_data=str(machine / "docker"))
    assert removal.run(["docker"], options, check=False)["failures"] == []
    # Of a Docker that somebody has installed since, only what was kept for ours may go.
    assert removal.present() == ["docker"]
    ahead = removal.run(["all"], options._replace(data=True), check=True)["steps"]
    assert ahead[:3] == [f"tree {machine}/docker/overlay2", f"directory {machine}/docker", "record docker"]
    assert removal.run(["all"], options._replace(data=True), check=False)["failures"] == []
    assert [p for p in machine.rglob("*") if p.is_file()] == [machine / "units" / "docker.service"]


def test_data_of_a_member_that_is_on_no_record_is_named(machine: Path) -> None:
    files.write_atomic(str(machine / "data" / "member" / "x"), b"x", 0o600)
    options = places.Options(data=True, etcd_data=str(machine / "data"))
    found = removal.run(["all"], options, check=False)
    assert (found["steps"], found["member"]) == ([], True)
    assert found["left"] == [f"{machine}/data/member: data of an etcd member, and no record says that it is ours"]


def test_a_failure_is_named_and_keeps_the_record(machine: Path) -> None:
    kept = machine / "d" / "kept"
    bring(machine, "a", [str(kept), str(machine / "e")])
    subprocess.run(["chattr", "+i", str(kept)], check=True)
    try:
        found = removal.run(["a"], places.Options(), check=False)
    finally:
        subprocess.run(["chattr", "-i", str(kept)], check=True)
    assert [re.sub(r"\[.*?\] ", "", one) for one in found["failures"]] == [
        f"file {kept}: Operation not permitted: '{kept}'"
    ]
    assert not (machine / "e").exists()
    assert removal.present() == ["a"]
    assert removal.run(["a"], places.Options(), check=False)["failures"] == []


def test_a_unit_of_others_is_not_ours_by_its_name(machine: Path) -> None:
    unit = machine / "docker.service"
    unit.write_text("[Service]\nExecStart=/usr/bin/dockerd -H fd://\n")
    assert not removal._is_ours(str(unit))
    unit.write_text("[Service]\nExecStart=/opt/kubernetes/bin/kubelet $KUBELET_OPTS\n")
    assert removal._is_ours(str(unit))
    assert not removal._is_ours(str(machine / "missing"))


def test_lines_of_fstab_that_became_comments_are_lines_again() -> None:
    before = "UUID=1 / ext4 defaults 0 1\n/swap none swap sw 0 0\n# /old none swap sw 0 0\n"
    now = (
        "UUID=1 / ext4 defaults 0 1\n#/swap none swap sw 0 0\n# /old none swap sw 0 0\n/dev/x /data xfs defaults 0 0\n"
    )
    assert restore.uncommented(now, before) == (
        "UUID=1 / ext4 defaults 0 1\n/swap none swap sw 0 0\n# /old none swap sw 0 0\n/dev/x /data xfs defaults 0 0\n"
    )


def test_sysprep_keeps_what_was_there_the_first_time(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = machine / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    real = sysprep._file
    monkeypatch.setattr(sysprep, "_file", lambda _, wanted, check: real(str(hosts), wanted, check))
    monkeypatch.setattr(sysprep, "read", lambda _: hosts.read_text())
    for address in ("192.0.2.1", "192.0.2.2"):
        sysprep.reconcile({"hosts": {"entries": [f"{address} m1"]}}, check=False)
    known = files.read_json(sysprep.RECORD)[str(hosts)]
    assert known["before"] == "127.0.0.1 localhost\n"
    assert "192.0.2.2 m1" in known["after"]
    assert sysprep.without_block(hosts.read_text()) == "127.0.0.1 localhost\n"


def test_sockets_of_shims_go_unless_somebody_holds_them(tmp_path: Path) -> None:
    shims = tmp_path / "containerd" / "s"
    shims.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(shims / "dead"))
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(shims / "held"))
        ending.drop_sockets(str(shims))
        assert [one.name for one in shims.iterdir()] == ["held"]
    ending.drop_sockets(str(shims))
    assert not shims.parent.exists()


def test_a_component_that_cannot_be_looked_at_is_named_and_its_record_stays(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(machine, "kubelet", [str(machine / "d" / "a")])
    bring(machine, "b", [str(machine / "e")])

    def hangs(program: str) -> str:
        raise subprocess.TimeoutExpired(program, 60)

    with monkeypatch.context() as patch:
        patch.setattr(rules, "programs", lambda: ["iptables"])
        patch.setattr(rules, "saved", hangs)
        patch.setattr(places, "kubelet_root", lambda: str(machine / "kubelet"))
        patch.setattr(processes, "within", lambda _: [])
        looked = removal.run(["all"], places.Options(), check=True)
        assert [line.partition(":")[0] for line in looked["left"]] == ["kubelet"]
        found = removal.run(["all"], places.Options(), check=False)
    assert len(found["failures"]) == 1
    assert "kubelet: what there is of it cannot be told: Command 'iptables' timed out" in found["failures"][0]
    assert not (machine / "e").exists()
    assert set(removal.present()) == {"b", "kubelet"}


def test_settings_that_cannot_be_put_back_are_named_and_block_nothing(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {
        "swap": {"before": f"{machine}/gone, {machine}/there", "after": "off"},
        "gone.service": {"before": "active, enabled", "after": "stopped, disabled"},
        "ufw allow 6443/tcp": {"before": "no rule", "after": "rule"},
        "firewalld 6443/tcp at every start": {"before": "closed", "after": "open"},
    }
    (machine / "there").touch()
    files.write_atomic(sysprep.RECORD, json.dumps(record).encode(), 0o600)
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(restore, "_run", lambda *argv: ran.append(argv))
    monkeypatch.setattr(rules, "PATH", "")
    monkeypatch.setattr(systemd, "states", lambda units: {unit: {"LoadState": "not-found"} for unit in units})
    found = removal.run(["all"], places.Options(), check=False)
    assert found["failures"] == []
    assert ran == [("swapon", f"{machine}/there")]
    assert found["left"] == [
        f"swap is not put back: {machine}/gone is not on this machine any more",
        "gone.service is not put back: gone.service is not on this machine any more",
        "ufw allow 6443/tcp is not put back: ufw is not on this machine any more",
        "firewalld 6443/tcp at every start is not put back: firewall-cmd is not on this machine any more",
    ]
    assert not (machine / "state").exists()


@pytest.mark.parametrize(
    ("what", "active", "wanted"),
    [
        ("firewalld 6443/tcp now", True, ("firewall-cmd", "--remove-port=6443/tcp")),
        ("firewalld vrrp at every start", True, ("firewall-cmd", "--permanent", "--remove-protocol=vrrp")),
        ("firewalld 10.0.0.0/8 now", True, ("firewall-cmd", "--zone=trusted", "--remove-source=10.0.0.0/8")),
        ("firewalld 6443/tcp now", False, None),
        ("firewalld 6443/tcp at every start", False, ("firewall-offline-cmd", "--remove-port=6443/tcp")),
    ],
)
def test_holes_in_a_firewall_are_closed_also_while_it_is_stopped(
    what: str, active: bool, wanted: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(restore, "_run", lambda *argv: ran.append(argv))
    state = {"firewalld.service": {"ActiveState": "active" if active else "inactive"}}
    monkeypatch.setattr(systemd, "states", lambda _: state)
    restore._close(what)
    assert ran == ([wanted] if wanted else [])

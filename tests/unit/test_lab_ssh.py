"""The SSH configuration is read by the real ssh, and the boot script by a real shell."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kubewright.lab.host import Cgroups, Host
from kubewright.lab.machine import _RUNC_WRAPPER, boot_script, network_file
from kubewright.lab.model import LabSpec, lab_spec
from kubewright.lab.sshconf import known_hosts, ssh_config


@pytest.fixture
def spec(tmp_path: Path) -> LabSpec:
    inventory = tmp_path / "my inventory 100%"
    inventory.mkdir()
    return lab_spec(inventory, {"one": "10.0.0.10", "two": "10.0.0.11"})


@pytest.mark.skipif(not shutil.which("ssh"), reason="needs the OpenSSH client")
@pytest.mark.parametrize("target", ["two", "10.0.0.11"])
def test_ssh_finds_a_machine_by_name_and_by_address(spec: LabSpec, tmp_path: Path, target: str) -> None:
    config = tmp_path / "ssh_config"
    config.write_text(ssh_config(spec))
    done = subprocess.run(["ssh", "-G", "-F", str(config), target], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert "hostname 10.0.0.11" in lines
    assert "user root" in lines
    assert "stricthostkeychecking true" in lines
    assert "passwordauthentication no" in lines
    assert any(f"--net=/run/netns/{spec.namespace} " in line for line in lines if line.startswith("proxycommand"))
    assert f"userknownhostsfile {spec.access}/known_hosts" in lines


def test_known_hosts_has_name_and_address_and_no_comment(spec: LabSpec) -> None:
    keys = dict.fromkeys(spec.machines, "ssh-ed25519 AAAA a comment\n")
    assert known_hosts(keys).splitlines()[0] == "one,10.0.0.10 ssh-ed25519 AAAA"


def test_network_file_is_static(spec: LabSpec) -> None:
    text = network_file(spec, spec.machines[0])
    assert "Address=10.0.0.10/24\nGateway=10.0.0.1\n" in text


def test_boot_script_is_a_shell_script_that_never_hands_out_the_clock(spec: LabSpec, tmp_path: Path) -> None:
    host = Host(Cgroups(1, ()), systemd=False, can_lower_oom_score=True)
    node = tmp_path / "group with space"
    text = boot_script(spec, spec.machines[0], host, Path("/image root"), (node,))
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    assert "--drop-capability=CAP_SYS_TIME" in text
    assert "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=0" in text
    second = Host(Cgroups(2, ()), systemd=False, can_lower_oom_score=True, devices=())
    text = boot_script(spec, spec.machines[0], second, Path("/image"), ())
    assert "UNIFIED_HIERARCHY" not in text
    assert "/dev/kmsg" not in text


@pytest.mark.parametrize(
    "flags", [["create", "--bundle", "BUNDLE", "id"], ["run", "--bundle=BUNDLE", "id"], ["create"]]
)
def test_runc_wrapper_raises_only_the_score_and_runs_the_real_one(tmp_path: Path, flags: list[str]) -> None:
    ours, theirs, bundle = tmp_path / "ours", tmp_path / "theirs", tmp_path / "a bundle"
    for directory in (ours, theirs, bundle):
        directory.mkdir()
    (ours / "runc").write_text(_RUNC_WRAPPER)
    (theirs / "runc").write_text('#!/bin/sh\nprintf "%s|" real "$@"\n')
    for runc in (ours / "runc", theirs / "runc"):
        runc.chmod(0o755)
    escaped = r'"A=\"oomScoreAdj\":-5"'
    config = bundle / "config.json"
    config.write_text('{"process":{"env":[%s],"oomScoreAdj":-998},"x":-1}' % escaped)  # noqa: UP031 -- braces of JSON
    arguments = [flag.replace("BUNDLE", str(bundle)) for flag in flags]
    path = f"{ours}:{theirs}:{os.environ['PATH']}"
    done = subprocess.run(
        ["runc", *arguments], env={"PATH": path}, cwd=bundle, capture_output=True, text=True, check=True
    )
    assert done.stdout == "|".join(["real", *arguments, ""])
    assert config.read_text() == '{"process":{"env":[%s],"oomScoreAdj":0},"x":-1}' % escaped  # noqa: UP031 -- as above


def test_runc_wrapper_says_when_there_is_no_runc(tmp_path: Path) -> None:
    (tmp_path / "runc").write_text(_RUNC_WRAPPER)
    (tmp_path / "runc").chmod(0o755)
    done = subprocess.run(
        [tmp_path / "runc", "--version"], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 127
    assert "not found" in done.stderr

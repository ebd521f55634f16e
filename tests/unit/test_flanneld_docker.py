from __future__ import annotations

import ipaddress
import os
import sys
from pathlib import Path

import pytest

from flanneld.cli import main
from flanneld.docker import foreign_route
from flanneld.outputs import SubnetFile, subnet_env, write_atomically

CONTENT = SubnetFile(
    {4: ipaddress.ip_network("10.1.0.0/16")}, {4: ipaddress.ip_network("10.1.74.0/24")}, 1472, ip_masq=False
)


def docker_opts(tmp_path: Path, *words: str, **environ: str) -> tuple[int, str]:
    out = tmp_path / "docker"
    status = main(["/usr/bin/mk-docker-opts.sh", "-f", str(tmp_path / "subnet.env"), "-d", str(out), *words], environ)
    return status, out.read_text() if out.exists() else ""


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    write_atomically(tmp_path / "subnet.env", subnet_env(CONTENT))
    return tmp_path


def test_both_forms(env_file: Path) -> None:
    assert docker_opts(env_file) == (
        0,
        'DOCKER_OPT_BIP="--bip=10.1.74.1/24"\nDOCKER_OPT_IPMASQ="--ip-masq=true"\nDOCKER_OPT_MTU="--mtu=1472"\n'
        'DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"\n',
    )


def test_as_the_procedures_ask_for_it(env_file: Path) -> None:
    status, text = docker_opts(env_file, "-c", "-k", "DOCKER_NETWORK_OPTIONS")
    assert (status, text) == (0, 'DOCKER_NETWORK_OPTIONS=" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"\n')


def test_variants(env_file: Path) -> None:
    assert docker_opts(env_file, "-c", "-m")[1] == 'DOCKER_OPTS=" --bip=10.1.74.1/24 --mtu=1472"\n'
    assert docker_opts(env_file, "-i")[1].count("\n") == 3
    assert docker_opts(env_file, "-ic")[1].count("\n") == 4
    prefixed = docker_opts(env_file, "-c", DOCKER_OPTS="--debug", DOCKER_OPT_A="--a")[1]
    assert prefixed == 'DOCKER_OPTS="--debug  --a --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"\n'


def test_individual_options_are_in_alphabetical_order_with_those_of_the_environment(env_file: Path) -> None:
    lines = docker_opts(env_file, "-i", DOCKER_OPT_ZZ="--zz", DOCKER_OPT_BIQ="--q")[1].splitlines()
    assert lines == [
        'DOCKER_OPT_BIP="--bip=10.1.74.1/24"',
        'DOCKER_OPT_BIQ="--q"',
        'DOCKER_OPT_IPMASQ="--ip-masq=true"',
        'DOCKER_OPT_MTU="--mtu=1472"',
        'DOCKER_OPT_ZZ="--zz"',
    ]


def test_the_inverse_of_our_masquerading(env_file: Path) -> None:
    (env_file / "subnet.env").write_text(subnet_env(CONTENT._replace(ip_masq=True)))
    assert 'DOCKER_OPT_IPMASQ="--ip-masq=false"\n' in docker_opts(env_file)[1]


def test_of_two_families_docker_gets_the_first(env_file: Path) -> None:
    subnets = {**CONTENT.subnets, 6: ipaddress.ip_network("fc00:0:0:7::/64")}
    networks = {**CONTENT.networks, 6: ipaddress.ip_network("fc00::/48")}
    (env_file / "subnet.env").write_text(subnet_env(CONTENT._replace(networks=networks, subnets=subnets)))
    assert docker_opts(env_file, "-c") == (0, 'DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"\n')


def test_without_a_subnet_and_with_a_bad_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert docker_opts(tmp_path) == (0, 'DOCKER_OPTS=""\n')
    assert docker_opts(tmp_path, DOCKER_OPTS="--debug") == (0, 'DOCKER_OPTS="--debug"\n')
    (tmp_path / "subnet.env").write_text("FLANNEL_IPMASQ=maybe\n")
    assert docker_opts(tmp_path)[0] == 1
    assert "Invalid value of FLANNEL_IPMASQ: maybe" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["-h"], ["-?"], ["-x"], ["-f"], ["stray"]])
def test_usage_is_status_1(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flanneld", "mk-docker-opts", *words], {}) == 1
    assert "-k  name of the combined variable" in capsys.readouterr().err


def test_output_to_a_pipe(env_file: Path) -> None:
    reader, writer = os.pipe()
    try:
        assert docker_opts(env_file, "-c", "-d", f"/dev/fd/{writer}")[0] == 0
        assert os.read(reader, 100).startswith(b'DOCKER_OPTS=" --bip')
    finally:
        os.close(reader)
        os.close(writer)


def hexadecimal(address: str) -> str:
    return f"{int.from_bytes(ipaddress.ip_address(address).packed, sys.byteorder):08X}"


@pytest.mark.parametrize(
    ("destination", "gateway", "mask", "found"),
    [
        ("10.1.74.0", "192.0.2.7", "255.255.255.0", "10.1.74.0/24 via 192.0.2.7 dev eth0"),
        ("10.1.74.0", "0.0.0.0", "255.255.255.0", ""),  # noqa: S104 - Docker's own bridge, no gateway
        ("10.1.74.0", "192.0.2.7", "255.255.0.0", ""),
        ("10.1.75.0", "192.0.2.7", "255.255.255.0", ""),
    ],
)
def test_a_route_to_the_own_subnet(env_file: Path, destination: str, gateway: str, mask: str, found: str) -> None:
    fields = ["eth0", hexadecimal(destination), hexadecimal(gateway), "0003", "0", "0", "0", hexadecimal(mask)]
    table = env_file / "route"
    table.write_text("Iface\tDestination\tGateway \n" + "\t".join([*fields, "0", "0", "0"]) + "\n\n")
    assert foreign_route(env_file / "subnet.env", table) == found
    assert foreign_route(env_file / "absent", table) == ""
    assert foreign_route(env_file / "subnet.env", env_file / "absent") == ""


def test_remove_docker0_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["/usr/bin/remove-docker0.sh", "-h"], {}) == 0
    assert "-force" in capsys.readouterr().err
    assert main(["flanneld", "remove-docker0", "-now"], {}) == 2
    assert "does not know '-now'" in capsys.readouterr().err

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from flanneld.cli import main
from flanneld.config import Network
from flanneld.notify import notify
from flanneld.outputs import SubnetFile, cni_conflist, previous_subnet, subnet_env, write_atomically
from kubewright.pyz import build_flanneld

CONTENT = SubnetFile(Network("10.1.0.0/16"), Network("10.1.74.0/24"), 1472, ip_masq=False)


def docker_opts(tmp_path: Path, *words: str, **environ: str) -> tuple[int, str]:
    out = tmp_path / "docker"
    status = main(["mk-docker-opts.sh", "-f", str(tmp_path / "subnet.env"), "-d", str(out), *words], environ)
    return status, out.read_text() if out.exists() else ""


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    write_atomically(tmp_path / "subnet.env", subnet_env(CONTENT))
    return tmp_path


def test_subnet_env_and_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "subnet.env"
    write_atomically(path, subnet_env(CONTENT))
    assert path.read_text() == (
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
    )
    assert previous_subnet(path) == Network("10.1.74.0/24")
    assert os.listdir(path.parent) == ["subnet.env"]  # noqa: PTH208 - hidden leftovers must show
    assert previous_subnet(tmp_path / "absent") is None
    path.write_text("FLANNEL_SUBNET=nonsense\n")
    assert previous_subnet(path) is None


def test_docker_options_both_forms(env_file: Path) -> None:
    assert docker_opts(env_file) == (
        0,
        'DOCKER_OPT_BIP="--bip=10.1.74.1/24"\nDOCKER_OPT_IPMASQ="--ip-masq=true"\nDOCKER_OPT_MTU="--mtu=1472"\n'
        'DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"\n',
    )


def test_docker_options_as_the_documents_ask_for_them(env_file: Path) -> None:
    status, text = docker_opts(env_file, "-c", "-k", "DOCKER_NETWORK_OPTIONS")
    assert (status, text) == (0, 'DOCKER_NETWORK_OPTIONS=" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"\n')


def test_docker_options_variants(env_file: Path) -> None:
    assert docker_opts(env_file, "-c", "-m")[1] == 'DOCKER_OPTS=" --bip=10.1.74.1/24 --mtu=1472"\n'
    assert docker_opts(env_file, "-i")[1].count("\n") == 3
    prefixed = docker_opts(env_file, "-c", DOCKER_OPTS="--debug", DOCKER_OPT_A="--a")[1]
    assert prefixed == 'DOCKER_OPTS="--debug  --a --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"\n'


def test_docker_options_without_a_subnet_and_with_a_bad_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert docker_opts(tmp_path) == (0, 'DOCKER_OPTS=""\n')
    (tmp_path / "subnet.env").write_text("FLANNEL_IPMASQ=maybe\n")
    assert docker_opts(tmp_path)[0] == 1
    assert "Invalid value of FLANNEL_IPMASQ: maybe" in capsys.readouterr().err
    assert main(["flanneld", "mk-docker-opts", "-h"], {}) == 1


def test_conflist() -> None:
    document = json.loads(cni_conflist(CONTENT))
    assert (document["name"], document["cniVersion"]) == ("cbr0", "0.3.1")
    bridge, portmap = document["plugins"]
    assert bridge == {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "isDefaultGateway": True,
        "hairpinMode": True,
        "ipMasq": True,
        "mtu": 1472,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.1.74.0/24"}]],
        },
    }
    assert portmap == {"type": "portmap", "capabilities": {"portMappings": True}}


def test_notify_reaches_the_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        assert notify({"NOTIFY_SOCKET": str(tmp_path / "notify")}, "READY=1", "STATUS=up")
        assert sock.recv(100) == b"READY=1\nSTATUS=up"
    assert not notify({}, "READY=1")


def test_the_file_is_the_same_every_time_and_runs(tmp_path: Path) -> None:
    one, two = build_flanneld(tmp_path / "a.pyz"), build_flanneld(tmp_path / "b.pyz")
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_mode & 0o777 == 0o755


def test_version_help_and_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flanneld", "-version"], {}) == 0
    assert main(["flanneld", "-h"], {}) == 0
    assert "-etcd-endpoints" in capsys.readouterr().err
    assert main(["flanneld", "-nonsense"], {}) == 2
    assert "unknown flag -nonsense" in capsys.readouterr().err

from __future__ import annotations

from pathlib import Path

import pytest

from flanneld.errors import UsageError
from flanneld.options import FLAGS, KubeOptions, LogOptions, Options, read


def options(*argv: str, **environ: str) -> Options:
    found = read(argv, environ)[1]
    assert found is not None
    return found


def test_defaults() -> None:
    found = options()
    assert found.etcd.endpoints == ("http://127.0.0.1:4001", "http://127.0.0.1:2379")
    assert (found.prefix, found.subnet_file) == ("/coreos.com/network", Path("/run/flannel/subnet.env"))
    assert (found.renew_margin, found.resync, found.ip_masq, found.forward_rules) == (3600, 5, False, True)
    assert (found.etcd_api, found.kube, found.healthz, found.cni_conf) == ("v3", None, None, None)
    assert (found.random_fully, found.blackhole_route, found.interface.public) == (True, False, {})
    assert found.log == LogOptions(0, (), None, json=False)


def test_every_flag_of_the_go_daemon_is_there() -> None:
    text = (
        "etcd-endpoints etcd-prefix etcd-keyfile etcd-certfile etcd-cafile etcd-username etcd-password iface "
        "iface-regex iface-can-reach subnet-file public-ip public-ipv6 subnet-lease-renew-margin ip-masq "
        "ip-masq-fully-random-disable kube-subnet-mgr kube-api-url kubeconfig-file kube-annotation-prefix "
        "net-config-path set-node-network-unavailable healthz-ip healthz-port iptables-resync iptables-forward-rules "
        "ip-blackhole-route v vmodule log_backtrace_at version"
    )
    present = {flag.name for flag in FLAGS if flag.kind != "gone" and not flag.idle}
    assert set(text.split()) | {"cni-conf", "etcd-api", "log-format"} == present


def test_the_unit_files_of_the_procedures() -> None:
    found = options(
        "-etcd-cafile=/dev/../etc/hostname",
        "-etcd-endpoints=https://192.0.2.1:2379,https://192.0.2.2:2379",
        "-etcd-prefix=/kubernetes/network",
        "-iface=eth0",
        "-ip-masq",
    )
    assert (found.etcd.endpoints[1], found.prefix, found.interface.names, found.ip_masq) == (
        "https://192.0.2.2:2379",
        "/kubernetes/network",
        ("eth0",),
        True,
    )
    # What systemd makes of a line of an environment file with a comment behind the value.
    assert [options(f"-etcd-prefix={one}").prefix for one in ("/", "", "a/b/", "/a")] == ["", "", "/a/b", "/a"]
    assert options("-etcd-endpoints=http://10.0.0.1:2379# etcd, all of it").etcd.endpoints == ("http://10.0.0.1:2379",)


def test_kubernetes(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("")
    assert options("-kube-subnet-mgr", "-etcd-endpoints=").kube == KubeOptions(
        "", "", "flannel.alpha.coreos.com", Path("/etc/kube-flannel/net-conf.json"), True
    )
    found = options(
        "-kube-subnet-mgr",
        "-kube-api-url=https://192.0.2.1:6443/",
        f"-kubeconfig-file={tmp_path}/config",
        "-kube-annotation-prefix=example.org/flannel",
        "-net-config-path=/etc/net.json",
        "-set-node-network-unavailable=false",
    )
    assert found.kube == KubeOptions(
        "https://192.0.2.1:6443", f"{tmp_path}/config", "example.org/flannel", Path("/etc/net.json"), False
    )
    assert options("-kube-subnet-mgr=false", "-kube-api-url=nonsense").kube is None


def test_addresses_are_in_the_kernels_form() -> None:
    found = options("-public-ip=192.0.2.9", "-public-ipv6=FD00:0:0::1", "-iface-can-reach=2001:DB8::1").interface
    assert (found.public, found.can_reach) == ({4: "192.0.2.9", 6: "fd00::1"}, "2001:db8::1")


def test_the_log() -> None:
    found = options(
        "-v=2", "-vmodule=manager=4, etcd/*=1", "-log_backtrace_at=manager.py:97", "-log-format=json", "-etcd-api=v2"
    )
    assert found.log == LogOptions(2, (("manager", 4), ("etcd/*", 1)), ("manager.py", 97), json=True)
    assert found.etcd_api == "v2"


def test_the_password_is_not_shown() -> None:
    found = options("-etcd-username=u", FLANNELD_ETCD_PASSWORD="hunter2")
    assert found.etcd.password == "hunter2"
    assert "hunter2" not in repr(found)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-subnet-lease-renew-margin=1440"], "1 to 1439"),
        (["-subnet-lease-renew-margin=0"], "1 to 1439"),
        (["-iptables-resync=0"], "1 to 86400"),
        (["-healthz-port=70000"], "70000"),
        (["-etcd-endpoints="], "empty"),
        (["-etcd-endpoints=192.0.2.1:2379"], "192.0.2.1:2379"),
        (["-etcd-endpoints=https://192.0.2.1:2379/v2"], "https://192.0.2.1:2379/v2"),
        (["-etcd-endpoints=https://[::1"], "use URLs such as"),
        (["-etcd-endpoints=http://etcd..example:2379"], "use URLs such as"),
        ([f"-etcd-endpoints=http://{'x' * 64}.example:2379"], "use URLs such as"),
        (["-etcd-cafile=/nowhere/ca.pem"], "/nowhere/ca.pem"),
        (["-etcd-certfile=/dev/null"], "no file /dev/null"),
        (["-etcd-password=x"], "without -etcd-username"),
        (["-etcd-api=v4"], "use v3 or v2"),
        (["-public-ip=fd00::1"], "not an IPv4 address"),
        (["-public-ipv6=192.0.2.1"], "not an IPv6 address"),
        (["-public-ip=192.0.2.1\0"], "not an IPv4 address"),
        (["-iface="], "-iface is empty"),
        (["-iface-regex=("], "not a regular expression"),
        (["-iface-can-reach=example.org"], "not an IPv4 address"),
        (["-subnet-file=/run/flannel/"], "not the name of a file"),
        (["-cni-conf=/"], "not the name of a file"),
        (["-vmodule=manager"], "PATTERN=N"),
        (["-vmodule==3"], "PATTERN=N"),
        (["-log_backtrace_at=manager.py"], "FILE:LINE"),
        (["-log-format=yaml"], "use text or json"),
    ],
)
def test_mistakes_end_in_a_clear_error(words: list[str], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        options(*words)
    assert text in str(caught.value)


@pytest.mark.parametrize("flag", ["-etcd-endpoints", "-kube-api-url"])
@pytest.mark.parametrize(
    "url",
    [
        "https://root:hunter2@192.0.2.1:2379",
        "https://root:hunter2@[::1",
        "https://root:hunter2#x@192.0.2.1:2379",
        "https://root:hunter2,x@192.0.2.1:2379",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_shown(flag: str, url: str) -> None:
    with pytest.raises(UsageError) as caught:
        options(f"{flag}={url}", f"-kube-subnet-mgr={'kube' in flag}".replace("True", "true").replace("False", "false"))
    assert "contains a user name" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_one_half_of_a_client_certificate(tmp_path: Path) -> None:
    (tmp_path / "c.pem").write_text("")
    with pytest.raises(UsageError, match="etcd-keyfile is missing"):
        options(f"-etcd-certfile={tmp_path}/c.pem")


def test_a_comment_may_hold_an_address() -> None:
    found = options("-etcd-endpoints=http://192.0.2.1:2379 # ask admin@example.org")
    assert found.etcd.endpoints == ("http://192.0.2.1:2379",)

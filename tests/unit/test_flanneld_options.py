from __future__ import annotations

from pathlib import Path

import pytest

from flanneld.errors import UsageError
from flanneld.options import Options, read


def options(*argv: str, **environ: str) -> Options:
    found = read(argv, environ)[1]
    assert found is not None
    return found


def test_go_spellings_are_the_same() -> None:
    for words in (["-etcd-prefix", "/x"], ["-etcd-prefix=/x"], ["--etcd-prefix", "/x"], ["--etcd-prefix=/x"]):
        assert options(*words).prefix == "/x"


def test_defaults() -> None:
    found = options()
    assert found.etcd.endpoints == ("http://127.0.0.1:4001", "http://127.0.0.1:2379")
    assert (found.prefix, found.subnet_file) == ("/coreos.com/network", Path("/run/flannel/subnet.env"))
    assert (found.renew_margin, found.resync, found.ip_masq, found.forward_rules) == (3600, 5, False, True)
    assert found.healthz is None


def test_booleans_take_a_value_after_the_equals_sign_only() -> None:
    assert options("-ip-masq").ip_masq
    assert options("-ip-masq=T").ip_masq
    assert not options("-ip-masq=false").ip_masq
    with pytest.raises(UsageError, match=r"'true' is not a flag.*-ip-masq=true"):
        options("-ip-masq", "true", "-iface", "eth1")


def test_the_environment_fills_what_the_command_line_leaves() -> None:
    found = options(
        "-etcd-prefix=/cli", FLANNELD_ETCD_PREFIX="/env", FLANNELD_IFACE="eth0,eth1", FLANNELD_IP_MASQ="true"
    )
    assert (found.prefix, found.interface.names, found.ip_masq) == ("/cli", ("eth0,eth1",), True)


def test_repeatable_flags_keep_their_order() -> None:
    assert options("-iface=b", "-iface", "a").interface.names == ("b", "a")


def test_the_password_is_not_shown() -> None:
    found = options("-etcd-username=u", FLANNELD_ETCD_PASSWORD="hunter2")
    assert found.etcd.password == "hunter2"
    assert "hunter2" not in repr(found)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-etcd-endpoint=x"], "did you mean -etcd-endpoints"),
        (["-iface"], "needs a value"),
        (["-ip-masq=yes"], "'yes', not a boolean"),
        (["-v=x"], "not an integer"),
        (["-subnet-lease-renew-margin=1440"], "1 to 1439"),
        (["-healthz-port=70000"], "70000"),
        (["-etcd-endpoints="], "empty"),
        (["-etcd-endpoints=192.0.2.1:2379"], "192.0.2.1:2379"),
        (["-etcd-cafile=/nowhere/ca.pem"], "/nowhere/ca.pem"),
        (["-etcd-certfile=/dev/null"], "no file /dev/null"),
        (["-public-ip=fd00::1"], "not an IPv4 address"),
        (["-iface-regex=("], "not a regular expression"),
        (["-kube-subnet-mgr"], "not implemented"),
        (["-kubeconfig-file=/x"], "not implemented"),
        (["stray"], "not a flag"),
    ],
)
def test_mistakes_end_in_a_clear_error(words: list[str], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        options(*words)
    assert text in str(caught.value)


def test_flags_not_implemented_pass_at_their_defaults() -> None:
    options("-kube-subnet-mgr=false", "-set-node-network-unavailable=true")


def test_one_half_of_a_client_certificate(tmp_path: Path) -> None:
    (tmp_path / "c.pem").write_text("")
    with pytest.raises(UsageError, match="etcd-keyfile is missing"):
        options(f"-etcd-certfile={tmp_path}/c.pem")

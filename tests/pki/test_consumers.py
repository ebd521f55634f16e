"""Those for whom the certificates are: etcd and the API server take the right ones, and no others."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest
from consumers import Consumers, Files, RefusedError, ask

# A client that must be refused, and what Go says of it.
_WRONG = {
    "none": "tls: client didn't provide a certificate",
    "another CA": "x509: certificate signed by unknown authority",
    "expired": "x509: certificate has expired or is not yet valid",
    "server only": "x509: certificate specifies an incompatible key usage",
}
_NAMESPACES = "/api/v1/namespaces"
_AS_ADMINISTRATOR = {"X-Remote-User": "kubernetes-admin", "X-Remote-Group": "system:masters"}


@pytest.fixture(scope="module")
def consumers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consumers]:
    made = Consumers(tmp_path_factory.mktemp("consumers"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


def wrong(consumers: Consumers, kind: str, ca: str, cn: str, o: tuple[str, ...] = ()) -> Files | None:
    """A client that must be refused, whatever its names: `ca` is the one that it would have to have."""
    name = f"{ca}-{kind.replace(' ', '-')}"
    if kind == "none":
        return None
    if kind == "another CA":
        other = "front-proxy" if ca == "etcd" else "etcd"
        return consumers.issued(name, other, cn, o, usage="client auth")
    usage = "server auth" if kind == "server only" else "client auth"
    return consumers.issued(name, ca, cn, o, usage=usage, expired=kind == "expired")


def test_etcd_is_one_cluster_for_the_right_client(consumers: Consumers) -> None:
    client = consumers.files("etcd-client")
    status, text = consumers.etcd("m1", "/v3/cluster/member/list", client, {})
    assert status == 200, consumers.evidence()
    members = json.loads(text)["members"]
    assert {member["name"]: member["clientURLs"] for member in members} == {
        name: [url] for name, url in consumers.members.items()
    }
    for writer in consumers.members:
        pair = {"key": base64.b64encode(writer.encode()).decode(), "value": base64.b64encode(b"written").decode()}
        assert consumers.etcd(writer, "/v3/kv/put", client, pair)[0] == 200, consumers.evidence()
        assert {consumers.value(reader, writer) for reader in consumers.members} == {"written"}, consumers.evidence()


@pytest.mark.parametrize("port", ["client", "peer"])
@pytest.mark.parametrize("kind", _WRONG)
def test_etcd_refuses(consumers: Consumers, kind: str, port: str) -> None:
    url = consumers.members["m2"] if port == "client" else consumers.peers["m2"]
    ca = consumers.pki / "etcd-ca.pem"
    client = wrong(consumers, kind, "etcd", "kube-etcd-healthcheck-client")
    with consumers.expect("etcd-m2", _WRONG[kind]), pytest.raises(RefusedError):
        pytest.fail(f"it answered {ask(f'{url}/health', ca, client)}\n{consumers.evidence()}")


def test_the_api_server_keeps_its_objects_in_etcd(consumers: Consumers) -> None:
    # etcd takes nobody without a certificate of its CA, so this is the API server's client certificate at work.
    assert consumers.ask_api("/readyz/etcd", consumers.files("admin")) == (200, "ok"), consumers.evidence()
    for member in consumers.members:
        stored = consumers.value(member, "/registry/namespaces/kube-system")
        assert stored is not None, consumers.evidence()
        assert "kube-system" in stored, consumers.evidence()


def test_the_administrator_lists_namespaces(consumers: Consumers) -> None:
    status, text = consumers.ask_api(_NAMESPACES, consumers.files("admin"))
    assert status == 200, (text, consumers.evidence())
    assert {"default", "kube-system"} <= {item["metadata"]["name"] for item in json.loads(text)["items"]}


def test_a_certificate_is_a_user(consumers: Consumers) -> None:
    for name in ("kube-controller-manager", "kube-scheduler", "kube-proxy"):
        status, text = consumers.ask_api("/api/v1/namespaces/default/pods/x/exec", consumers.files(name))
        assert status == 403, (text, consumers.evidence())
        assert f'User \\"system:{name}\\" cannot' in text


@pytest.mark.parametrize("kind", _WRONG)
def test_the_api_server_refuses(consumers: Consumers, kind: str) -> None:
    client = wrong(consumers, kind, "kubernetes", "kubernetes-admin", ("system:masters",))
    if client is None:
        status, text = consumers.ask_api(_NAMESPACES, None)
        assert status == 403, (text, consumers.evidence())
        assert "system:anonymous" in text
        return
    with consumers.expect("kube-apiserver", _WRONG[kind].rpartition("x509: ")[2]):
        status, text = consumers.ask_api(_NAMESPACES, client)
        assert status == 401, (text, consumers.evidence())


def test_the_front_proxy_speaks_for_users(consumers: Consumers) -> None:
    proxy = consumers.files("front-proxy-client")
    status, text = consumers.ask_api(_NAMESPACES, proxy, _AS_ADMINISTRATOR)
    assert status == 200, (text, consumers.evidence())
    status, text = consumers.ask_api(_NAMESPACES, proxy, {"X-Remote-User": "somebody"})
    assert status == 403, (text, consumers.evidence())
    assert 'User \\"somebody\\" cannot' in text
    # It is nobody itself: its CA is not that of the users.
    assert consumers.ask_api(_NAMESPACES, proxy)[0] == 401, consumers.evidence()


def test_nobody_else_speaks_for_users(consumers: Consumers) -> None:
    status, text = consumers.ask_api(_NAMESPACES, consumers.files("kube-proxy"), _AS_ADMINISTRATOR)
    assert status == 403, (text, consumers.evidence())
    assert 'User \\"system:kube-proxy\\" cannot' in text
    # The right name from a CA that vouches for users, and another name from the right CA.
    namesake = consumers.issued("namesake", "kubernetes", "front-proxy-client", usage="client auth")
    status, text = consumers.ask_api(_NAMESPACES, namesake, _AS_ADMINISTRATOR)
    assert status == 403, (text, consumers.evidence())
    assert 'User \\"front-proxy-client\\" cannot' in text
    stranger = consumers.issued("stranger", "front-proxy", "stranger", usage="client auth")
    assert consumers.ask_api(_NAMESPACES, stranger, _AS_ADMINISTRATOR)[0] == 401, consumers.evidence()
    assert consumers.ask_api(_NAMESPACES, None, _AS_ADMINISTRATOR)[0] == 403, consumers.evidence()
    for kind in ("expired", "server only"):
        client = wrong(consumers, kind, "front-proxy", "front-proxy-client")
        assert consumers.ask_api(_NAMESPACES, client, _AS_ADMINISTRATOR)[0] == 401, consumers.evidence()

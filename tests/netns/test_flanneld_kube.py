from __future__ import annotations

import base64
import itertools
import json
import shutil
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flannel_lab import Pki, until
from kube_api import PREFIX, Api, Manager

from flanneld.kube.client import KubeClient
from flanneld.kube.errors import GoneError, KubeError, KubeUnavailableError
from flanneld.kube.kubeconfig import access
from flanneld.subnet.kube import Book, Doors, Follower

CONFIG = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
VXLAN = {"VNI": 1, "VtepMAC": "2a:18:f8:5f:7b:0a"}
PEER = {
    "kube_subnet_manager": "true",
    "backend_type": "vxlan",
    "backend_data": '{"VNI":1,"VtepMAC":"2a:18:f8:5f:7b:0b"}',
    "public_ip": "192.0.2.2",
}
"""What a Go daemon annotates."""

Make = Callable[..., Manager]


@pytest.fixture
def make(api: Api, tmp_path: Path) -> Iterator[Make]:
    """Starts managers; what they are given beyond the node's name is that of kube_driver.py."""
    made: list[Manager] = []

    def start(node: str, config: Any = CONFIG, **more: Any) -> Manager:
        made.append(Manager(api, tmp_path / f"{node}-{len(made)}", node, config, **more))
        return made[-1]

    yield start
    for one in made:
        one.close()


_COUNT = itertools.count(1)


@pytest.fixture
def node(api: Api) -> str:
    """A node with a pod CIDR of its own, whose number is in its name."""
    number = next(_COUNT)
    api.make_node(f"n{number}", f"10.244.{number}.0/24")
    return f"n{number}"


@pytest.fixture
def peer(api: Api, node: str) -> Iterator[str]:
    """A node on which a Go daemon runs."""
    name = f"peer-of-{node}"
    api.make_node(name, f"10.244.{100 + int(node[1:])}.0/24")
    api.annotate(name, **PEER)
    yield name
    api.delete_node(name)


class Plain(socketserver.StreamRequestHandler):
    """Answers in clear text, whatever it is asked."""

    def handle(self) -> None:
        self.rfile.read1(1)
        self.wfile.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")


def interpreters() -> list[str]:
    """A python of every version from 3.9 to 3.13 that is here; this one at least."""
    found = {sys.version_info[1]: sys.executable}
    for minor in range(9, 14):
        ours = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))
        for path in (*ours, shutil.which(f"python3.{minor}")):
            if path is not None and "/shims/" not in str(path):  # pyenv's may lead nowhere
                found.setdefault(minor, str(path))
    return [found[minor] for minor in sorted(found)]


def json_kubeconfig(api: Api, directory: Path) -> Path:
    """A kubeconfig that needs no PyYAML, with a client certificate inside."""

    def inside(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    config = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "one", "user": "me"}}],
        "clusters": [{"name": "one", "cluster": {"server": api.url, "certificate-authority-data": inside(api.pki.ca)}}],
        "users": [
            {
                "name": "me",
                "user": {
                    "client-certificate-data": inside(api.pki.client),
                    "client-key-data": inside(Pki.key(api.pki.client)),
                },
            }
        ],
    }
    path = directory / "kubeconfig.json"
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("python", interpreters())
def test_on_every_python_the_annotations_are_those_of_the_go_daemon(
    api: Api, make: Make, node: str, tmp_path: Path, python: str
) -> None:
    attributes = {"public_ip": "192.0.2.1", "backend_type": "vxlan", "backend_data": VXLAN}
    options = {"kubeconfig": str(json_kubeconfig(api, tmp_path))}
    manager = make(node, python=python, attributes=attributes, options=options)
    acquired = manager.wait("acquired")
    assert acquired["lease"]["subnets"] == [f"10.244.{node[1:]}.0/24"]
    assert acquired["expires"] is None
    assert api.annotations(node) == {
        "backend-data": '{"VNI":1,"VtepMAC":"2a:18:f8:5f:7b:0a"}',
        "backend-type": "vxlan",
        "kube-subnet-manager": "true",
        "public-ip": "192.0.2.1",
    }
    assert manager.wait("picture")["leases"][node] == {
        "subnets": [f"10.244.{node[1:]}.0/24"],
        "public_ip": "192.0.2.1",
        "backend_type": "vxlan",
        "backend_data": VXLAN,
        "public_ipv6": "",
        "backend_v6_data": None,
    }
    manager.tell("announce", attributes={"public_ip": "192.0.2.5"})
    until(5, lambda: manager.peers[node]["public_ip"] == "192.0.2.5", manager.evidence)


@pytest.mark.parametrize(("announced", "written"), [("host-gw", "host-gw"), ("", "")])
def test_a_backend_without_data_writes_null(api: Api, make: Make, node: str, announced: str, written: str) -> None:
    manager = make(node, attributes={"public_ip": "192.0.2.1", "backend_type": announced})
    assert manager.wait("picture")["leases"][node]["backend_data"] is None
    found = api.annotations(node)
    assert (found["backend-type"], found["backend-data"]) == (written, "null")


def test_another_prefix_of_annotations(api: Api, make: Make, node: str) -> None:
    options = {"kubeconfig": str(api.kubeconfig()), "annotation_prefix": "example.org/pods"}
    make(node, options=options).wait("picture")
    found = api.node(node)["metadata"]["annotations"]
    assert found["example.org/pods-public-ip"] == "192.0.2.1"
    assert not api.annotations(node)


def test_peers_come_change_and_go(api: Api, make: Make, node: str, peer: str) -> None:
    manager = make(node)
    lease = manager.wait("picture")["leases"][peer]
    assert (lease["public_ip"], lease["backend_data"]["VtepMAC"]) == ("192.0.2.2", "2a:18:f8:5f:7b:0b")

    api.annotate(peer, backend_data='{"VNI":1,"VtepMAC":"2a:18:f8:5f:7b:0c"}')
    changed = until(5, lambda: manager.peers[peer]["backend_data"]["VtepMAC"][-2:] == "0c", manager.evidence)
    assert changed < 2

    pictures = len(manager.said)
    api.patch_node(peer, {"metadata": {"labels": {"something": "else"}}})
    api.annotate(peer, backend_data="{")
    until(5, lambda: peer not in manager.peers, manager.evidence)
    assert f"ignoring the node {peer}: its annotation {PREFIX}backend-data is not JSON: '{{'" in manager.log
    assert len(manager.said) == pictures + 1, "what flannel does not look at makes no picture"

    api.annotate(peer, backend_data="null", backend_type="host-gw")
    until(5, lambda: manager.peers.get(peer, {}).get("backend_type") == "host-gw", manager.evidence)
    api.delete_node(peer)
    until(5, lambda: peer not in manager.peers, manager.evidence)
    assert node in manager.peers


def test_nodes_without_flannel_are_no_leases(api: Api, make: Make, node: str, peer: str) -> None:
    api.make_node(f"bare-{node}")
    api.annotate(peer, kube_subnet_manager=None)
    manager = make(node)
    assert not {f"bare-{node}", peer} & manager.wait("picture")["leases"].keys()
    api.annotate(peer, kube_subnet_manager="true")
    until(5, lambda: peer in manager.peers, manager.evidence)
    assert f"bare-{node}" not in manager.log


def test_more_nodes_than_a_page_holds(api: Api, make: Make, node: str) -> None:
    names = [f"many-{number}" for number in range(130)]
    try:
        for number, name in enumerate(names):
            annotations = {PREFIX + word.replace("_", "-"): value for word, value in PEER.items()}
            api.make_node(name, f"10.245.{number}.0/24", annotations=annotations)
        manager = make(node)
        assert manager.wait("picture")["leases"].keys() >= set(names)
        assert len([one for one in manager.said if one["what"] == "picture"]) == 1
    finally:
        for name in names:
            api.delete_node(name)


def test_the_old_annotations_of_the_own_node_are_there_for_the_backend(api: Api, make: Make, node: str) -> None:
    api.annotate(node, **PEER)
    manager = make(node)
    assert manager.wait("leases")["leases"][node]["backend_data"]["VtepMAC"] == "2a:18:f8:5f:7b:0b"


def test_the_condition_is_written_when_flannel_works(api: Api, make: Make, node: str) -> None:
    unavailable = {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}
    api.patch_node(node, {"status": {"conditions": [unavailable, {"type": "Ready", "status": "True"}]}}, "/status")
    manager = make(node)
    manager.wait("picture")
    time.sleep(0.5)
    assert api.condition(node)["status"] == "True"  # type: ignore[index]
    manager.tell("ready")
    until(5, lambda: api.condition(node)["status"] == "False", manager.evidence)  # type: ignore[index]
    found = api.condition(node) or {}
    assert (found["reason"], found["message"]) == ("FlannelIsUp", "Flannel is running on this node")
    assert [one["type"] for one in api.node(node)["status"]["conditions"]] == ["NetworkUnavailable", "Ready"]

    api.patch_node(node, {"status": {"conditions": [unavailable]}}, "/status")
    until(5, lambda: api.condition(node)["status"] == "False", manager.evidence)  # type: ignore[index]


def test_the_condition_can_be_left_alone(api: Api, make: Make, node: str) -> None:
    options = {"kubeconfig": str(api.kubeconfig()), "set_network_unavailable": False}
    manager = make(node, options=options)
    manager.wait("picture")
    manager.tell("ready")
    manager.tell("announce", attributes={"public_ip": "192.0.2.7"})
    until(5, lambda: api.annotations(node)["public-ip"] == "192.0.2.7", manager.evidence)
    assert api.condition(node) is None


def test_lost_and_changed_annotations_are_written_again(api: Api, make: Make, node: str) -> None:
    manager = make(node, attributes={"public_ip": "192.0.2.1", "backend_type": "vxlan", "backend_data": VXLAN})
    manager.wait("picture")
    before = api.annotations(node)
    api.patch_node(node, {"metadata": {"annotations": None}})
    until(5, lambda: api.annotations(node) == before, manager.evidence)
    api.annotate(node, backend_data='{"VNI":1,"VtepMAC":"2a:18:f8:5f:7b:ff"}')
    until(8, lambda: api.annotations(node) == before, manager.evidence)
    until(5, lambda: manager.peers[node]["backend_data"] == VXLAN, manager.evidence)
    assert not manager.last("lost")


def test_two_managers_of_one_node_do_not_write_at_full_speed(api: Api, make: Make, node: str) -> None:
    for address in ("192.0.2.1", "192.0.2.2"):
        make(node, attributes={"public_ip": address, "backend_type": "host-gw"}).wait("picture")
    before = int(api.node(node)["metadata"]["resourceVersion"])
    time.sleep(4)
    assert int(api.node(node)["metadata"]["resourceVersion"]) - before < 8


def test_a_node_that_is_made_anew_is_annotated_again(api: Api, make: Make, node: str, peer: str) -> None:
    manager = make(node)
    manager.wait("picture")
    manager.tell("ready")
    until(5, lambda: api.condition(node), manager.evidence)
    before, cidr = api.annotations(node), f"10.244.{node[1:]}.0/24"
    api.delete_node(node)
    time.sleep(0.5)
    api.make_node(node)  # the kubelet is faster than the controller manager
    time.sleep(0.5)
    api.patch_node(node, {"spec": {"podCIDR": cidr, "podCIDRs": [cidr]}})
    until(8, lambda: api.annotations(node) == before, manager.evidence)
    until(8, lambda: api.condition(node), manager.evidence)
    pictures = [one["leases"] for one in manager.said if one["what"] == "picture"]
    assert all(peer in leases for leases in pictures)
    assert not manager.last("lost")


def test_a_node_that_comes_back_with_another_pod_cidr_is_lost(api: Api, make: Make, node: str) -> None:
    manager = make(node)
    manager.wait("picture")
    api.delete_node(node)
    api.make_node(node, "10.244.250.0/24")
    lost = manager.wait("lost")["text"]
    api.delete_node(node)
    assert lost.startswith(f"the pod CIDR of node {node} was changed from 10.244.{node[1:]}.0/24 to 10.244.250.0/24")


def test_a_node_that_stays_away_is_lost_and_the_picture_stays(api: Api, make: Make, node: str, peer: str) -> None:
    manager = make(node)
    manager.wait("picture")
    deleted = time.monotonic()
    api.delete_node(node)
    until(2, lambda: manager.trouble == f"node {node} was deleted", manager.evidence)
    assert manager.wait("lost")["text"].startswith(f"node {node} was deleted")
    assert time.monotonic() - deleted >= 3, "it was not waited for"
    assert peer in manager.peers
    assert node in manager.peers


def test_without_a_pod_cidr_it_waits(api: Api, make: Make) -> None:
    api.make_node("unassigned")
    manager = make("unassigned")
    error = manager.wait("error")
    assert error["kind"] == "LeaseError"
    assert error["text"].startswith('node "unassigned" pod cidr not assigned (kube-controller-manager assigns it with')
    api.patch_node("unassigned", {"spec": {"podCIDR": "10.244.251.0/24", "podCIDRs": ["10.244.251.0/24"]}})
    assert manager.wait("acquired")["lease"]["subnets"] == ["10.244.251.0/24"]


def test_a_pod_cidr_outside_of_the_network(api: Api, make: Make, node: str) -> None:
    del api
    error = make(node, {"Network": "10.240.0.0/16", "Backend": {"Type": "vxlan"}}).wait("error")
    assert error["kind"] == "ConfigError"
    wanted = f'subnet "10.240.0.0/16" specified in the flannel net config doesn\'t contain "10.244.{node[1:]}.0/24"'
    assert error["text"].startswith(f'{wanted} PodCIDR of the "{node}" node (')


def test_a_node_that_is_not_there_yet(api: Api, make: Make) -> None:
    manager = make("latecomer")
    assert manager.wait("error")["text"].startswith('there is no node "latecomer" (')
    api.make_node("latecomer", "10.244.252.0/24")
    manager.wait("acquired")


def test_addresses_that_operators_annotate(api: Api, make: Make, node: str) -> None:
    api.annotate(node, public_ip_overwrite="203.0.113.7", node_public_ip="192.0.2.300")
    manager = make(node)
    wrong = manager.wait("error")["text"]
    assert wrong.startswith(f"the node's annotation {PREFIX}node-public-ip is '192.0.2.300'")
    api.annotate(node, node_public_ip="192.0.2.3", node_public_ipv6="2001:DB8::0:3")
    assert manager.wait("overrides") == {
        "what": "overrides",
        "own": {"4": "192.0.2.3", "6": "2001:db8::3"},
        "announced": {"4": "203.0.113.7"},
    }
    manager.wait("picture")
    pictures = len(manager.said)
    api.annotate(node, public_ip_overwrite="203.0.113.8")
    until(5, lambda: len(manager.said) > pictures, manager.evidence)
    manager.tell("overrides")
    until(5, lambda: manager.last("overrides")["announced"] == {"4": "203.0.113.8"}, manager.evidence)


def test_dual_stack_and_ipv6_only(api: Api, make: Make) -> None:
    api.make_node("dual", "10.244.253.0/24", "fd00:10:244:fd::/64")
    api.make_node("six", "fd00:10:244:fe::/64")
    both = {**CONFIG, "EnableIPv6": True, "IPv6Network": "fd00:10:244::/48"}
    attributes = {"backend_type": "vxlan", "public_ipv6": "2001:db8::1", "backend_v6_data": VXLAN}
    manager = make("dual", both, attributes={**attributes, "public_ip": "192.0.2.1", "backend_data": VXLAN})
    assert manager.wait("acquired")["lease"]["subnets"] == ["10.244.253.0/24", "fd00:10:244:fd::/64"]
    assert api.annotations("dual") == {
        "backend-data": '{"VNI":1,"VtepMAC":"2a:18:f8:5f:7b:0a"}',
        "backend-type": "vxlan",
        "backend-v6-data": '{"VNI":1,"VtepMAC":"2a:18:f8:5f:7b:0a"}',
        "kube-subnet-manager": "true",
        "public-ip": "192.0.2.1",
        "public-ipv6": "2001:db8::1",
    }
    six = make("six", {**both, "EnableIPv4": False}, attributes={**attributes, "public_ip": ""})
    six.wait("picture")
    assert "public-ip" not in api.annotations("six")
    until(5, lambda: manager.peers.get("six", {}).get("subnets") == ["fd00:10:244:fe::/64"], manager.evidence)
    assert six.peers["dual"]["subnets"] == ["fd00:10:244:fd::/64"]
    assert six.peers["dual"]["public_ip"] == ""
    # Either family's change is a change.
    api.annotate("dual", public_ipv6_overwrite="2001:db8::9")
    manager.tell("announce", attributes={"public_ipv6": "2001:db8::9"})
    until(5, lambda: six.peers["dual"]["public_ipv6"] == "2001:db8::9", manager.evidence)

    half = make("six", both, attributes=attributes | {"public_ip": "192.0.2.1"})
    assert half.wait("error")["text"].startswith('node "six" pod cidr not assigned for IPv4')


def test_the_file_of_the_configuration_is_looked_at_again(make: Make, node: str) -> None:
    manager = make(node)
    manager.wait("picture")
    text = json.dumps({**CONFIG, "Network": "10.240.0.0/12"})
    manager.net_config.write_text(text)
    until(5, lambda: manager.last("picture")["config"] == text, manager.evidence)
    manager.net_config.unlink()
    until(5, lambda: "stays as it was: failed to read net conf" in manager.log, manager.evidence)
    time.sleep(1.2)
    assert manager.log.count("failed to read net conf") == 1
    assert manager.last("picture")["config"] == text


def test_what_rbac_denies_is_named_with_the_rule_that_is_missing(api: Api, make: Make, node: str) -> None:
    reader = make(node, options={"kubeconfig": str(api.kubeconfig("reader"))})
    text = reader.wait("error")["text"]
    assert text.startswith('the API server does not let flanneld patch nodes/status (403): nodes "n')
    assert text.endswith(
        '(its ClusterRole needs the rule apiGroups: [""], resources: ["nodes/status"], verbs: ["patch"])'
    )
    stranger = make(node, options={"kubeconfig": str(api.kubeconfig("stranger"))})
    assert 'resources: ["nodes"], verbs: ["get"]' in stranger.wait("error")["text"]
    unknown = make(node, options={"kubeconfig": str(api.kubeconfig("unknown"))})
    text = unknown.wait("error")["text"]
    assert text.startswith("the API server does not know who flanneld is (401): Unauthorized (the token of ")
    nobody = make(node, options={"kubeconfig": str(api.kubeconfig("nobody", username='""'))})
    text = nobody.wait("error")["text"]
    assert "system:anonymous" in text
    assert "unknown-token" not in unknown.evidence()


def test_in_a_pod_the_token_is_read_again(api: Api, make: Make, node: str, tmp_path: Path) -> None:
    spec = {"nodeName": node, "containers": [{"name": "flannel", "image": "flannel"}]}
    api.admin("POST", "/api/v1/namespaces/default/pods", {"metadata": {"name": f"pod-{node}"}, "spec": spec})
    directory = tmp_path / "account"
    directory.mkdir()
    token = directory / "token"
    token.write_text("ey.not.valid\n")
    (directory / "ca.crt").write_bytes(api.pki.ca.read_bytes())
    environ = {
        "POD_NAME": f"pod-{node}",
        "POD_NAMESPACE": "default",
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(api.port),
    }
    manager = make(node, options={}, environ=environ, service_account=str(directory))
    text = manager.wait("error")["text"]
    assert "(401)" in text
    assert f"the token in {token} is expired, or of another cluster" in text
    token.write_text(api.service_account_token() + "\n")
    assert manager.wait("picture")["leases"][node]["public_ip"] == "192.0.2.1"
    # A running manager has the token of the moment, too.
    token.write_text("ey.not.valid")
    manager.tell("announce", attributes={"public_ip": "192.0.2.4"})
    until(5, lambda: "the own node cannot be looked after" in manager.trouble, manager.evidence)
    token.write_text(api.service_account_token())
    until(15, lambda: api.annotations(node)["public-ip"] == "192.0.2.4", manager.evidence)
    until(5, lambda: manager.trouble == "", manager.evidence)


def test_a_wrong_ca_a_wrong_name_and_a_wrong_scheme_are_explained(api: Api, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Pki(tmp_path / "other").ca
    path = api.kubeconfig()

    def refused(url: str, ca: Path) -> str:
        client = KubeClient(access(url, str(path), {})._replace(ca_file=str(ca)))
        with pytest.raises(KubeUnavailableError) as caught:
            client.node("n1")
        return str(caught.value)

    text = refused(api.url, other)
    assert text.startswith(f"the certificate of the API server {api.url} is not accepted: ")
    assert text.endswith(f"(the authority that is trusted is {other})")
    text = refused(api.url.replace("127.0.0.1", "localhost"), api.pki.ca)
    assert "Hostname mismatch" in text
    assert "tls-server-name" in text
    assert "wants TLS (write https://)" in refused(api.url.replace("https", "http"), api.pki.ca)
    assert "ended the TLS handshake" in refused(api.etcd_url.replace("http", "https"), api.pki.ca)
    with socketserver.TCPServer(("127.0.0.1", 0), Plain) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        text = refused(f"https://127.0.0.1:{server.server_address[1]}", api.pki.ca)
        server.shutdown()
    assert "does not speak TLS" in text
    assert "Connection refused" in refused("https://127.0.0.1:1", api.pki.ca)
    insecure = access(api.url, str(path), {})._replace(ca_file="", insecure=True)
    assert KubeClient(insecure).version().isdecimal()
    named = access(api.url.replace("127.0.0.1", "localhost"), str(path), {})._replace(server_name="127.0.0.1")
    assert KubeClient(named).version().isdecimal()


def test_a_watch_goes_on_from_where_it_ended(api: Api, node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flanneld.kube.client.WATCH", 1)
    client = KubeClient(access("", str(api.kubeconfig()), {}))
    version = client.version()
    api.annotate(node, public_ip="192.0.2.1")
    first = list(client.watch_nodes(version))
    assert (first[0].kind, first[1].kind) == ("OPEN", "MODIFIED")
    api.annotate(node, public_ip="192.0.2.2")
    second = list(client.watch_nodes(first[-1].node["metadata"]["resourceVersion"]))
    changes = [
        event.node["metadata"]["annotations"][f"{PREFIX}public-ip"] for event in second if event.kind == "MODIFIED"
    ]
    assert changes == ["192.0.2.2"]


def test_a_version_that_etcd_has_forgotten_is_gone(api: Api, node: str, peer: str) -> None:
    del node, peer
    client = KubeClient(access("", str(api.kubeconfig()), {}))
    names = [page.nodes[0]["metadata"]["name"] for page in client.nodes(1)]
    assert len(names) == len(set(names)) > 1
    pages = client.nodes(1)
    next(pages)
    revision = int(api.etcd("put", {"key": "/x", "value": "y"})["header"]["revision"])
    api.etcd("compaction", {"revision": str(revision)})
    with pytest.raises(GoneError):
        list(pages)
    assert len(list(client.nodes(1))) == len(names)
    with pytest.raises(KubeError) as caught:
        client.node("none")
    assert caught.value.status == 404


def test_an_api_server_that_is_away_and_comes_back_with_another_state(
    api: Api, make: Make, node: str, peer: str
) -> None:
    manager = make(node)
    manager.wait("picture")
    time.sleep(0.5)
    api.stop_api()
    late = make(node, attributes={"public_ip": "192.0.2.1", "backend_type": "host-gw"})
    until(5, lambda: "nodes cannot be watched" in manager.trouble, manager.evidence)
    assert "cannot be reached: Connection refused" in late.wait("error")["text"]
    api.etcd("deleterange", {"key": f"/registry/minions/{peer}"})
    revision = int(api.etcd("put", {"key": "/x", "value": "z"})["header"]["revision"])
    api.etcd("compaction", {"revision": str(revision)})
    time.sleep(3)
    assert peer in manager.peers, "the last picture stays"
    assert manager.log.count("nodes cannot be watched") <= 3, "an outage is no flood"
    assert late.process.poll() is None
    late.close()

    api.stop_etcd()
    saved = api.directory / "saved"
    shutil.copytree(api.directory / "data", saved)
    api.start_etcd()
    api.start_api()
    until(15, lambda: peer not in manager.peers, manager.evidence)
    until(5, lambda: manager.trouble == "", manager.evidence)
    client = KubeClient(access("", str(api.kubeconfig()), {}))
    with pytest.raises(GoneError):
        list(client.watch_nodes("1"))
    # A version of another history.
    book = Book(PREFIX, (4,), node)
    follower = Follower(
        client, book, Doors(lambda _: None, lambda: None, lambda *_: None, lambda _: None), lambda _: None
    )
    follower._version = "999999999"
    follower._catch_up(doubtful=True)
    assert node in book.leases

    # etcd is restored from a backup: what came after it was never there.
    api.make_node("after", "10.244.249.0/24")
    api.annotate("after", **PEER)
    until(5, lambda: "after" in manager.peers, manager.evidence)
    api.stop_api()
    api.stop_etcd()
    shutil.rmtree(api.directory / "data")
    saved.rename(api.directory / "data")
    api.start_etcd()
    api.start_api()
    until(15, lambda: "after" not in manager.peers, manager.evidence)
    assert manager.process.poll() is None
    assert not manager.last("lost")

"""Endpoints of one cluster that answer differently: one that is of no use must not keep the client from a good one."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from flanneld.errors import EtcdError, EtcdUnavailableError
from flanneld.etcd.transport import Cluster, UnfitError
from flanneld.etcd.v2 import EtcdV2Client
from flanneld.etcd.v3 import EtcdClient
from flanneld.options import EtcdOptions

Make = Callable[[int, bytes], str]


@pytest.fixture
def endpoint() -> Iterator[Make]:
    """Makes an endpoint that answers everything with a status and a body; `asked` of the function are its requests."""
    servers: list[ThreadingHTTPServer] = []

    def make(status: int, body: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-Etcd-Index", "7")
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST  # noqa: N815 - the base class wants these names

            def log_message(self, *_: Any) -> None:
                pass

        made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(made)
        threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{made.server_port}"

    yield make
    for one in servers:
        one.shutdown()
        one.server_close()


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


GOOD3 = json.dumps(
    {"header": {"cluster_id": "1", "revision": "2"}, "kvs": [{"key": b64("x"), "value": b64("v"), "mod_revision": "2"}]}
).encode()
GOOD2 = json.dumps({"action": "get", "node": {"key": "/x", "value": "v", "modifiedIndex": 2}}).encode()
BAD = [
    (404, b"404 page not found\n"),
    (200, b"<html>sign in first</html>"),
    (200, b""),
    (403, b"forbidden"),
    (302, b""),
    (502, b"bad gateway"),
]


@pytest.mark.parametrize("api", ["v3", "v2"])
@pytest.mark.parametrize(("status", "body"), [*BAD, (500, b'{"error":"etcdserver: corrupt cluster","code":15}')])
def test_a_useless_endpoint_is_left(endpoint: Make, api: str, status: int, body: bytes) -> None:
    bad, good = endpoint(status, body), endpoint(200, GOOD3 if api == "v3" else GOOD2)
    cluster = Cluster(EtcdOptions((bad, good)))
    client = EtcdClient(cluster) if api == "v3" else EtcdV2Client(cluster)
    for _ in range(3):
        found = client.get("/x")
        assert found is not None
        assert found.value == "v"
        assert cluster.current == 1


@pytest.mark.parametrize("api", ["v3", "v2"])
@pytest.mark.parametrize(("status", "body"), BAD[:-1])
def test_the_refusal_is_told_when_there_is_no_other(endpoint: Make, api: str, status: int, body: bytes) -> None:
    bad = endpoint(status, body)
    for urls in ((bad,), (bad, "http://127.0.0.1:1")):
        client = (EtcdClient if api == "v3" else EtcdV2Client)(Cluster(EtcdOptions(urls)))
        with pytest.raises(UnfitError) as caught:
            client.get("/x")
        assert all(url in str(caught.value) for url in urls)
        assert "Traceback" not in str(caught.value)


def test_what_etcd_itself_refuses_is_not_asked_elsewhere(endpoint: Make) -> None:
    denied = endpoint(403, b'{"error":"etcdserver: permission denied","code":7}')
    with pytest.raises(EtcdError, match="permission denied") as caught:
        EtcdClient(Cluster(EtcdOptions((denied, endpoint(200, GOOD3))))).get("/x")
    assert not isinstance(caught.value, (UnfitError, EtcdUnavailableError))

"""Damage what comes from etcd until its reader fails in a way that it does not document.

python tests/unit/fuzz_flanneld_etcd.py TARGET [--seconds 60] [--runs N] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
with atheris.instrument_imports(include=["flanneld"]):
    from flanneld.errors import EtcdError
    from flanneld.etcd import v2, v3
    from flanneld.etcd.http import HttpError, Response, _Source
    from flanneld.etcd.transport import Answer
    from flanneld.subnet.etcd_watch import Book
    from flanneld.subnet.lease import decode_attributes, encode_attributes, format_key, parse_key, parse_lease
    from flanneld.subnet.store import Change, Record

_VALUE = b'{"PublicIP":"192.168.60.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"aa"}}'
_EVENTS = (
    b'{"result":{"header":{"cluster_id":"1","revision":"9"},"events":[{"type":"DELETE","kv":{"key":"L2s=",'
    b'"mod_revision":"4"}}],"compact_revision":"3","canceled":false,"fragment":false}}'
)
_EVENT2 = b'{"action":"expire","node":{"key":"/a/b","modifiedIndex":7,"createdIndex":6,"dir":false,"ttl":4}}'
_HTTP = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n0\r\nA: b\r\n\r\n",
    b"HTTP/1.0 404 Not Found\r\n\r\nx",
)


class _Bytes:
    """A socket and a transport that give what the fuzzer wants."""

    endpoint = "http://192.0.2.1"

    def __init__(self, data: bytes) -> None:
        self._data = data

    def settimeout(self, _: float) -> None: ...

    def recv(self, limit: int) -> bytes:
        piece, self._data = self._data[: min(limit, 7)], self._data[min(limit, 7) :]
        return piece

    def line(self, _: float) -> bytes | None:
        line, self._data = self._data, b""
        return line or None

    def close(self) -> None: ...

    avoid = close


def _key(data: bytes) -> None:
    subnets = parse_key(data.decode("utf-8", "replace"))
    if subnets is not None and parse_key(format_key(subnets)) != subnets:
        raise RuntimeError(f"{subnets} does not come back")


def _value(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    attributes = decode_attributes(text)
    if attributes is not None:
        encode_attributes(attributes)
    parse_lease("10.5.1.0-24", text)
    book = Book()
    name = "subnets/10.5.1.0-24"
    book.apply([Change(name, Record(name, text, 1, permanent=False))])
    book.picture()


def _watch3(data: bytes) -> None:
    stream = _Bytes(data)
    v3.Watch(stream, stream, 4, stream.close).next(1)  # type: ignore[arg-type]


def _watch2(data: bytes) -> None:
    stream = _Bytes(data)
    watch = v2.WatchV2(stream, lambda index: index, 4)  # type: ignore[arg-type, return-value]
    watch._response = stream  # type: ignore[assignment]
    watch._change(data)


def _list(data: bytes) -> None:
    answer = Answer("http://192.0.2.1", 200, {"x-etcd-index": "4"}, bytearray(data))
    stream = _Bytes(b"")
    stream.call = lambda _: answer  # type: ignore[attr-defined]
    for client in (v3.EtcdClient.__new__(v3.EtcdClient), v2.EtcdV2Client.__new__(v2.EtcdV2Client)):
        client._transport = stream  # type: ignore[assignment]
        client._headers = {}  # type: ignore[union-attr]
        client._base, client._token = "/v3", ""  # type: ignore[union-attr]
        client._options = stream  # type: ignore[union-attr]
        stream.username = ""  # type: ignore[attr-defined]
        try:
            client.collect("/a", lambda item: item)
        except EtcdError:
            continue
    for judge in (v2.judge, v3.judge):
        judge(answer._replace(status=400))


def _http(data: bytes) -> None:
    source = _Source(_Bytes(data))  # type: ignore[arg-type]
    response = Response(source, float("inf"), "GET")
    while response.line(10) is not None:
        pass


TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes], tuple[type[Exception], ...]]] = {
    "key": (_key, [b"10.5.1.0-24", b"10.5.1.0-24&fc00::-64"], ()),
    "value": (_value, [_VALUE, json.dumps({"publicip": "1.2.3.4", "publicipv6": "::1"}).encode()], ()),
    "watch3": (_watch3, [_EVENTS], (EtcdError,)),
    "watch2": (_watch2, [_EVENT2, b'{"errorCode":401,"message":"x","index":4}'], (EtcdError,)),
    "list": (_list, [b'{"header":{"revision":"1"},"kvs":[{"key":"L2s=","mod_revision":"4"}]}', _EVENT2], ()),
    "http": (_http, list(_HTTP), (HttpError,)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=list(TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=-1)
    parser.add_argument("--seed", type=int, default=0, help="0 is another one each time")
    options = parser.parse_args()
    function, seeds, documented = TARGETS[options.target]

    def run(data: bytes) -> None:
        try:
            function(data)
        except documented as error:
            if not str(error).strip():
                raise RuntimeError("an error that says nothing") from error

    with TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        flags = [f"-seed={options.seed}", f"-runs={options.runs}", f"-max_total_time={options.seconds}"]
        flags += ["-timeout=10", "-max_len=4096", "-print_final_stats=1", f"-artifact_prefix={corpus}/"]
        atheris.Setup([sys.argv[0], *flags, corpus], run)
        # Ends the process.
        atheris.Fuzz()


if __name__ == "__main__":
    main()

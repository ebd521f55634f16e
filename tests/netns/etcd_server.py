"""A real etcd on loopback with both APIs, certificates good and bad, and a relay that can be cut and counts."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from flannel_lab import Tools, until

from flanneld.etcd.transport import Cluster
from flanneld.etcd.v2 import EtcdV2Client
from flanneld.etcd.v3 import EtcdClient
from flanneld.options import EtcdOptions


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Authority:
    """A CA that issues what a test wants."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.name = directory, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.ca = directory / f"{name}.pem"
        certificate = self._issue(self._subject, self._key.public_key(), "", 0, ca=True)
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, address: str = "127.0.0.1", days: int = 1) -> tuple[Path, Path]:
        """Certificate and key; `days` below 0: expired since then."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
        certificate = self._issue(subject, key.public_key(), address, days)
        stem = self.directory / f"{self.name}-{name or 'nameless'}-{address}-{days}"
        files = stem.with_suffix(".crt"), stem.with_suffix(".key")
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files

    def _issue(
        self, subject: x509.Name, public: ec.EllipticCurvePublicKey, address: str, days: int, *, ca: bool = False
    ) -> x509.Certificate:
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days or 1)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - datetime.timedelta(days=3))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )
        if not ca:
            usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False).add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False
            )
        return builder.sign(self._key, hashes.SHA256())


class Server:
    """One member, or one of several; `scheme` https wants client certificates unless told otherwise."""

    def __init__(self, tools: Tools, directory: Path, scheme: str = "http", name: str = "one") -> None:
        self.tools, self.directory, self.name = tools, directory / name, name
        self.directory.mkdir(exist_ok=True)
        # In memory where that is possible: etcd syncs after every write, and thousands are made.
        shm = Path("/dev/shm")  # noqa: S108
        self.data = Path(tempfile.mkdtemp(prefix="kwetcd", dir=shm if shm.is_dir() else None)) / "data"
        self.url = f"{scheme}://127.0.0.1:{free_port()}"
        self.peer = f"http://127.0.0.1:{free_port()}"
        self.flags: list[str] = []
        self.members: list[Server] = [self]
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        command = [self.tools.etcd, f"--name={self.name}", f"--data-dir={self.data}", "--enable-v2", "--logger=zap"]
        command += [f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}"]
        command += [f"--listen-peer-urls={self.peer}", f"--initial-advertise-peer-urls={self.peer}", *self.flags]
        command.append("--initial-cluster=" + ",".join(f"{one.name}={one.peer}" for one in self.members))
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=self.tools.env, stdout=log, stderr=log)

    def start(self) -> None:
        self.launch()
        self.wait()

    def wait(self) -> None:
        """It answers on its port; what it answers is another matter."""
        host, port = self.url.rpartition("/")[2].split(":")

        def listens() -> bool:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
                return True
            return False

        until(20, listens, f"etcd listens; see {self.directory}/log")
        if self.url.startswith("http:"):
            until(20, lambda: self.healthy, f"etcd has a leader; see {self.directory}/log")

    @property
    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer:  # noqa: S310 - own etcd
                return bool(json.load(answer)["health"] == "true")
        except OSError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(20)
            self.process = None

    def remove(self) -> None:
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.data.parent, ignore_errors=True)

    def restart_with(self, data: Path) -> None:
        """Start again from another state of the data."""
        self.stop()
        shutil.rmtree(self.data)
        shutil.copytree(data, self.data)
        self.start()

    def options(self) -> EtcdOptions:
        return EtcdOptions((self.url,))

    @property
    def client(self) -> EtcdClient:
        return EtcdClient(Cluster(self.options()))

    @property
    def v2(self) -> EtcdV2Client:
        return EtcdV2Client(Cluster(self.options()))

    def compact(self) -> None:
        """Forget all but the present."""
        revision = self.client.list("/").header.revision
        self.client._call("compact", "/kv/compaction", {"revision": str(revision), "physical": True})

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        return self.client._call("ask", path, body)


@contextmanager
def server(tools: Tools, directory: Path, *flags: str, scheme: str = "http") -> Iterator[Server]:
    made = Server(tools, directory, scheme)
    made.flags += flags
    try:
        made.start()
        yield made
    finally:
        made.remove()


@contextmanager
def three(tools: Tools, directory: Path) -> Iterator[list[Server]]:
    members = [Server(tools, directory, name=name) for name in ("one", "two", "three")]
    for member in members:
        member.members = members
    try:
        for member in members:
            member.launch()
        for member in members:
            member.wait()
        yield members
    finally:
        for member in members:
            member.remove()


class Relay:
    """Stands before a plain server: counts the requests, and can cut all connections, or swallow what is sent."""

    def __init__(self, target: str) -> None:
        self._target = ("127.0.0.1", int(target.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[str] = []
        self.refuse = False
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            self._open.clear()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.refuse:
                near.close()
                continue
            try:
                far = socket.create_connection(self._target, 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._open += [near, far]
            threading.Thread(target=self._copy, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._copy, args=(far, near, False), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, inward: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if inward:
                    self.requests += [
                        line.split()[1] for line in data.decode("latin-1").splitlines() if line.endswith(" HTTP/1.1")
                    ]
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def bytes_of(made: Server, key: str) -> bytes:
    """A value as etcdctl's own API call gives it: straight from the gateway, by another client."""
    import base64  # noqa: PLC0415

    body = json.dumps({"key": base64.b64encode(key.encode()).decode()}).encode()
    with urllib.request.urlopen(f"{made.url}/v3/kv/range", body, timeout=5) as answer:  # noqa: S310 - own etcd
        return base64.b64decode(json.load(answer)["kvs"][0]["value"])


def settled(seconds: float = 0.3) -> None:
    time.sleep(seconds)

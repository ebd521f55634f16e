"""A real etcd of three members and a real API server on the loopback, from the files of kubewright's own table."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.serialization import Encoding
from tools import ROOT

from kubepki import issue, keys, reconcile, spec, usages
from kubepki.keys import Key
from kubewright import certificates, topology
from kubewright.artifacts.catalog import Settings, ensure

# Addresses of the loopback that nobody else has reason to use.
_HOSTS = {f"m{number}": {"ansible_host": f"127.77.0.1{number}"} for number in (1, 2, 3)}
_GROUPS = {"etcd": list(_HOSTS), "kube_master": ["m1"], "kube_node": ["m2", "m3"]}
_VARIABLES = {
    "cluster_name": "prove",
    "kube_version": "1.20.2",
    "pod_cidr": "10.244.0.0/16",
    "service_cidr": "10.0.0.0/16",
    "dns_domain": "cluster.local",
    "network_mode": "cni",
    "api_port": 6443,
}


@dataclass(frozen=True)
class Files:
    """Paths of a certificate and its key."""

    certificate: Path
    key: Path


class RefusedError(Exception):
    """The other side does not want this TLS connection; what it said."""


def ask(
    url: str, ca: Path, client: Files | None = None, headers: Mapping[str, str] | None = None, body: Any = None
) -> tuple[int, str]:
    """(status, text) of a GET, or of a POST with a body as JSON. RefusedError when TLS fails."""
    context = ssl.create_default_context(cafile=str(ca))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if client:
        context.load_cert_chain(client.certificate, client.key)
    parts = urlsplit(url)
    connection = http.client.HTTPSConnection(str(parts.hostname), parts.port, timeout=10, context=context)
    try:
        sent = None if body is None else json.dumps(body)
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection.request("GET" if body is None else "POST", path, sent, dict(headers or {}))
        reply = connection.getresponse()
        return reply.status, reply.read().decode(errors="replace")
    except ssl.SSLCertVerificationError as error:
        raise AssertionError(f"{url}: its certificate is not accepted here: {error}") from error
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected) as error:
        raise RefusedError(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()


def until(seconds: float, condition: Callable[[], bool], what: Callable[[], str]) -> None:
    """Wait for a condition, at most so long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what()}"
        time.sleep(0.1)


def free_port(address: str) -> int:
    """A port on which nobody listened a moment ago."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


class Process:
    """A daemon with its log."""

    def __init__(self, command: Sequence[str | Path], log: Path) -> None:
        self._log = log
        with log.open("wb") as stream:
            environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(log.parent)}
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment, cwd=log.parent
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """All that it has said."""
        return self._log.read_text(errors="replace")

    @property
    def tail(self) -> str:
        """The last lines that it has said."""
        lines = self.log.splitlines()[-15:]
        state = "running" if self.running else f"ended with {self._process.returncode}"
        return "\n".join([f"{self._log.name} ({state}):", *(f"    {line:.300}" for line in lines)])

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


class Consumers:
    """The daemons, and the PKI directory they were started from."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pki = directory / "pki"
        self.cluster, problems = topology.build(_VARIABLES, _HOSTS, _GROUPS)
        assert self.cluster, problems
        data = certificates.spec(self.cluster)
        for entry in data["certificates"]:
            if entry["name"].startswith("etcd-peer-"):
                # Between addresses of the loopback the kernel lets a connection come from the first of them.
                entry["hosts"].append("127.0.0.1")
        self.spec = spec.parse(data)
        reconcile.apply(self.spec, self.pki, datetime.now(UTC))
        self._artifacts = ensure(
            ["etcd", "kube-apiserver"], Settings("debian", ROOT / "artifacts.lock.yml"), lambda _: None
        )
        self.members: dict[str, str] = {}
        self.peers: dict[str, str] = {}
        for name, host in _HOSTS.items():
            address = host["ansible_host"]
            self.members[name] = f"https://{address}:{free_port(address)}"
            self.peers[name] = f"https://{address}:{free_port(address)}"
        self.api = f"https://127.0.0.1:{free_port('127.0.0.1')}"
        self._processes: dict[str, Process] = {}

    def start(self) -> None:
        """Both, and what they need to answer; AssertionError with their logs."""
        programs = {name: self._program(name) for name in self._artifacts}
        for name in self.members:
            self._run(f"etcd-{name}", [programs["etcd"], *self._etcd_flags(name)])
        until(30, lambda: all(self._etcd_is_healthy(url) for url in self.members.values()), self.evidence)
        self._run("kube-apiserver", [programs["kube-apiserver"], *self._api_flags()])
        until(90, self._api_is_ready, self.evidence)

    def stop(self) -> None:
        # The API server first: it would only complain.
        for process in reversed(self._processes.values()):
            process.stop()

    def evidence(self) -> str:
        return "\n".join(process.tail for process in self._processes.values())

    @contextmanager
    def expect(self, daemon: str, words: str) -> Iterator[None]:
        """Of what is done in here `daemon` must say these words in its log, within a few seconds."""
        process = self._processes[daemon]
        before = len(process.log)
        yield
        until(5, lambda: words in process.log[before:], lambda: f"{words!r} in the log of\n{process.tail}")

    def files(self, name: str) -> Files:
        """Those of a certificate in the PKI directory."""
        return Files(self.pki / f"{name}.pem", self.pki / f"{name}-key.pem")

    def issued(self, name: str, ca: str, cn: str, o: Sequence[str] = (), *, usage: str, expired: bool = False) -> Files:
        """One more certificate of a CA of the directory."""
        now = datetime.now(UTC)
        authority, authority_key = self.files(f"{ca}-ca").certificate, self.files(f"{ca}-ca").key
        key = keys.generate(Key())
        template = issue.Template(
            subject=issue.subject(cn, o),
            key_usages=frozenset({"digital_signature"}),
            extended_usages=(usages.EXTENDED[usage],),
            not_before=now - timedelta(hours=2),
            not_after=now - timedelta(minutes=1) if expired else now + timedelta(hours=1),
        )
        issuer = issue.load(authority.read_bytes(), str(authority))
        signing = keys.load(authority_key.read_bytes(), str(authority_key))
        made = issue.sign(template, key.public_key(), signing, issuer)
        files = Files(self.directory / f"{name}.pem", self.directory / f"{name}-key.pem")
        files.certificate.write_bytes(made.public_bytes(Encoding.PEM))
        files.key.write_bytes(keys.pem(key))
        return files

    def etcd(self, member: str, path: str, client: Files | None, body: Any = None) -> tuple[int, str]:
        """Ask a member's client port."""
        return ask(f"{self.members[member]}{path}", self.pki / "etcd-ca.pem", client, body=body)

    def value(self, member: str, key: str) -> str | None:
        """What etcd has under a key, as the client for health checks reads it."""
        wanted = {"key": base64.b64encode(key.encode()).decode()}
        status, text = self.etcd(member, "/v3/kv/range", self.files("etcd-client"), wanted)
        assert status == 200, text
        found = json.loads(text).get("kvs", [])
        return base64.b64decode(found[0]["value"]).decode(errors="replace") if found else None

    def ask_api(self, path: str, client: Files | None, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """GET from the API server."""
        return ask(f"{self.api}{path}", self.pki / "kubernetes-ca.pem", client, headers)

    def _run(self, name: str, command: Sequence[str | Path]) -> None:
        self._processes[name] = Process(command, self.directory / f"{name}.log")

    def _program(self, name: str) -> Path:
        # The store keeps content under its digest; the API server wants to be called by its name.
        path = self.directory / name
        path.symlink_to(self._artifacts[name].path)
        return path

    def _etcd_flags(self, name: str) -> list[str]:
        server, peer = self.files(f"etcd-server-{name}"), self.files(f"etcd-peer-{name}")
        everybody = ",".join(f"{other}={url}" for other, url in self.peers.items())
        return [
            f"--name={name}",
            f"--data-dir={self.directory / f'data-{name}'}",
            f"--listen-client-urls={self.members[name]}",
            f"--advertise-client-urls={self.members[name]}",
            f"--listen-peer-urls={self.peers[name]}",
            f"--initial-advertise-peer-urls={self.peers[name]}",
            f"--initial-cluster={everybody}",
            "--initial-cluster-token=prove",
            "--client-cert-auth",
            f"--trusted-ca-file={self.pki / 'etcd-ca.pem'}",
            f"--cert-file={server.certificate}",
            f"--key-file={server.key}",
            "--peer-client-cert-auth",
            f"--peer-trusted-ca-file={self.pki / 'etcd-ca.pem'}",
            f"--peer-cert-file={peer.certificate}",
            f"--peer-key-file={peer.key}",
            "--logger=zap",
        ]

    def _api_flags(self) -> list[str]:
        serving, to_etcd = self.files("apiserver"), self.files("apiserver-etcd-client")
        kubelets, proxy = self.files("apiserver-kubelet-client"), self.files("front-proxy-client")
        return [
            "--bind-address=127.0.0.1",
            f"--secure-port={urlsplit(self.api).port}",
            "--insecure-port=0",
            # Nobody is to be led here: no endpoint of the Service `kubernetes` may be on the loopback.
            "--advertise-address=192.0.2.1",
            "--endpoint-reconciler-type=none",
            f"--etcd-servers={','.join(self.members.values())}",
            f"--etcd-cafile={self.pki / 'etcd-ca.pem'}",
            f"--etcd-certfile={to_etcd.certificate}",
            f"--etcd-keyfile={to_etcd.key}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={self.pki / 'kubernetes-ca.pem'}",
            f"--kubelet-client-certificate={kubelets.certificate}",
            f"--kubelet-client-key={kubelets.key}",
            f"--service-account-key-file={self.pki / 'service-account.pub'}",
            f"--service-account-signing-key-file={self.pki / 'service-account.key'}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-cluster-ip-range={_VARIABLES['service_cidr']}",
            "--authorization-mode=Node,RBAC",
            f"--requestheader-client-ca-file={self.pki / 'front-proxy-ca.pem'}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={proxy.certificate}",
            f"--proxy-client-key-file={proxy.key}",
        ]

    def _all_run(self) -> None:
        assert all(process.running for process in self._processes.values()), self.evidence()

    def _etcd_is_healthy(self, url: str) -> bool:
        self._all_run()
        with suppress(OSError, RefusedError):
            return ask(f"{url}/health", self.pki / "etcd-ca.pem", self.files("etcd-client"))[1] == '{"health":"true"}'
        return False

    def _api_is_ready(self) -> bool:
        self._all_run()
        with suppress(OSError, RefusedError):
            return self.ask_api("/readyz", None) == (200, "ok")
        return False

"""Machines made of network namespaces, a real etcd with TLS, and flanneld processes run from the built file."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from debian_packages import unpacked

PREFIX = "/coreos.com/network"
ETCD_ADDRESS = "192.168.60.254"
_PACKAGES = (
    "etcd-server",
    "iptables",
    "libip4tc2",
    "libip6tc2",
    "libnetfilter-conntrack3",
    "libnfnetlink0",
    "libnftnl11",
    "iputils-ping",
)


class Tools:
    """etcd, ping and iptables: of the machine, or of Debian packages unpacked into the cache."""

    def __init__(self, work: Path) -> None:
        self.bin = work / "bin"
        self.bin.mkdir()
        self.env = {"PATH": f"{self.bin}:/usr/sbin:/usr/bin:/sbin:/bin"}
        if all(shutil.which(name) for name in ("etcd", "ping", "iptables")):
            self.env["PATH"] = os.environ["PATH"]
            self.etcd = str(shutil.which("etcd"))
            return
        root = unpacked("root", _PACKAGES)
        libraries = root / "usr/lib/x86_64-linux-gnu"
        if not libraries.is_dir():
            libraries = next((root / "usr/lib").glob("*-linux-gnu"))
        self.env["LD_LIBRARY_PATH"] = str(libraries)
        self.env["XTABLES_LIBDIR"] = str(libraries / "xtables")
        self.etcd = str(root / "usr/bin/etcd")
        (self.bin / "ping").symlink_to(root / "bin/ping")
        self.use_iptables("nft")

    def use_iptables(self, kind: str) -> None:
        """Let `iptables` be its "legacy" or its "nft" kind."""
        multi = unpacked("root", _PACKAGES) / f"usr/sbin/xtables-{kind}-multi"
        for name in ("iptables", "iptables-save", "iptables-restore"):
            (self.bin / name).unlink(missing_ok=True)
            (self.bin / name).symlink_to(multi)


def run(*command: str, env: dict[str, str] | None = None, check: bool = True, timeout: float = 30) -> str:
    """Run a command and return what it printed; a failure shows both streams."""
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=timeout, check=False)
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def until(seconds: float, condition: Callable[[], Any], what: str | Callable[[], str]) -> float:
    """Wait for a condition; returns the seconds it took."""
    started = time.monotonic()
    while not condition():
        late = time.monotonic() - started >= seconds
        assert not late, f"not within {seconds} s: {what if isinstance(what, str) else what()}"
        time.sleep(0.02)
    return time.monotonic() - started


class Pki:
    """One CA, a server certificate for etcd and a client certificate."""

    def __init__(self, directory: Path) -> None:
        self.ca, self.server, self.client, self.nameless = (
            directory / f"{name}.pem" for name in ("ca", "server", "client", "nameless")
        )
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test etcd CA")])
        self._write(self.ca, self._certificate(issuer, issuer, key, key, ca=True), key)
        for path, name in ((self.server, "etcd"), (self.client, "flanneld"), (self.nameless, "")):
            own = ec.generate_private_key(ec.SECP256R1())
            attribute = x509.NameAttribute(NameOID.COMMON_NAME, name) if name else None
            subject = x509.Name([attribute or x509.NameAttribute(NameOID.ORGANIZATION_NAME, "nameless")])
            self._write(path, self._certificate(subject, issuer, own, key), own)

    @staticmethod
    def key(path: Path) -> Path:
        return path.with_name(f"{path.stem}-key.pem")

    def _write(self, path: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.key(path).write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    @staticmethod
    def _certificate(
        subject: x509.Name,
        issuer: x509.Name,
        own: ec.EllipticCurvePrivateKey,
        signing: ec.EllipticCurvePrivateKey,
        *,
        ca: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        addresses = [ipaddress.ip_address(one) for one in (ETCD_ADDRESS, "127.0.0.1")]
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(own.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(one) for one in addresses]), critical=False)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
            .sign(signing, hashes.SHA256())
        )


class Etcd:
    """A real etcd that wants client certificates, in a namespace."""

    def __init__(self, namespace: str, tools: Tools, pki: Pki, directory: Path) -> None:
        self.namespace, self.tools, self.pki, self.directory = namespace, tools, pki, directory
        self.process: subprocess.Popen[bytes] | None = None
        self.url = f"https://{ETCD_ADDRESS}:2379"

    def start(self) -> None:
        log = (self.directory / "etcd.log").open("ab")
        command = ["ip", "netns", "exec", self.namespace, self.tools.etcd, "--name=one"]
        command += [f"--data-dir={self.directory / 'data'}", f"--listen-client-urls={self.url}"]
        command += [f"--advertise-client-urls={self.url}", "--listen-peer-urls=http://127.0.0.1:2380"]
        command += [f"--trusted-ca-file={self.pki.ca}", "--client-cert-auth", f"--cert-file={self.pki.server}"]
        command += [f"--key-file={Pki.key(self.pki.server)}", "--unsafe-no-fsync", "--logger=zap"]
        if "no-fsync" not in run(self.tools.etcd, "--help", env=self.tools.env):
            command.remove("--unsafe-no-fsync")
        self.process = subprocess.Popen(command, env=self.tools.env, stdout=log, stderr=log)
        until(20, self._answers, f"etcd answers; see {self.directory}/etcd.log")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(15)
            self.process = None

    def client(self, function: str, *arguments: Any) -> Any:
        """Call a method of flanneld's etcd client in etcd's namespace; returns its result as JSON values."""
        code = (
            "import json, sys; from flanneld.etcd import EtcdClient, tls_context;"
            "from flanneld.options import EtcdOptions;"
            "o = EtcdOptions((sys.argv[1],), *sys.argv[2:5]); c = EtcdClient(o, tls_context(o));"
            "print(json.dumps(getattr(c, sys.argv[5])(*json.loads(sys.argv[6]))))"
        )
        python = [sys.executable, "-c", code, self.url, str(self.pki.ca), str(self.pki.client)]
        python += [str(Pki.key(self.pki.client)), function, json.dumps(arguments)]
        return json.loads(run("ip", "netns", "exec", self.namespace, *python))

    def request(self, path: str, body: dict[str, Any]) -> Any:
        return self.client("_call", path, body)

    def keys(self) -> dict[str, str]:
        """Return value by the last part of the key of all leases."""
        items = self.client("list", f"{PREFIX}/subnets/")[1]
        return {item[0].rsplit("/", 1)[1]: item[1] for item in items}

    def delete(self, name: str) -> None:
        key = f"{PREFIX}/subnets/{name}"
        assert self.client("delete", key, self.client("get", key)[2])

    def _answers(self) -> bool:
        try:
            self.client("get", "x")
        except AssertionError:
            return False
        return True


class Machine:
    """A namespace with an interface eth0 on the common bridge, and a flanneld in it."""

    def __init__(self, lab: Lab, number: int) -> None:
        self.lab = lab
        self.number = number
        self.namespace = f"{lab.name}-m{number}"
        self.address = f"192.168.60.{number}"
        self.directory = lab.directory / f"m{number}"
        self.directory.mkdir()
        self.process: subprocess.Popen[bytes] | None = None
        run("ip", "netns", "add", self.namespace)
        run(
            "ip",
            "link",
            "add",
            f"kv{number}",
            "netns",
            lab.switch,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self.namespace,
        )
        run("ip", "-n", lab.switch, "link", "set", f"kv{number}", "master", "br0", "up")
        self.ip("link", "set", "lo", "up")
        self.ip("link", "set", "eth0", "up")
        self.ip("addr", "add", f"{self.address}/24", "dev", "eth0")
        self.ip("route", "add", "default", "via", ETCD_ADDRESS)
        self.exec("sysctl", "-qw", "net.ipv4.ip_forward=1")

    def exec(self, *command: str, check: bool = True) -> str:
        return run("ip", "netns", "exec", self.namespace, *command, env=self.lab.tools.env, check=check)

    def ip(self, *words: str, check: bool = True) -> str:
        return run("ip", "-n", self.namespace, *words, check=check)

    def fdb(self) -> str:
        return run("bridge", "-n", self.namespace, "fdb", "show", "dev", "flannel.1", check=False)

    @property
    def subnet_file(self) -> Path:
        return self.directory / "subnet.env"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def start(self, *flags: str, wait: bool = True) -> float:
        """Start flanneld; returns the seconds until subnet.env was written by this run."""
        pki = self.lab.pki
        before = self.subnet_file.stat().st_mtime_ns if self.subnet_file.exists() else 0
        command = ["ip", "netns", "exec", self.namespace, "/usr/bin/python3", str(self.lab.pyz)]
        command += (
            [f"-etcd-endpoints=https://192.168.60.253:2379,{self.lab.etcd.url}"]
            if "dead" in flags
            else [f"-etcd-endpoints={self.lab.etcd.url}"]
        )
        command += [f"-etcd-cafile={pki.ca}", f"-etcd-certfile={pki.client}", "-etcd-keyfile", str(Pki.key(pki.client))]
        command += [f"--subnet-file={self.subnet_file}", "-ip-masq", f"-cni-conf={self.directory}/10-flannel.conflist"]
        command += ["-healthz-port=8471", "-healthz-ip=127.0.0.1", *(flag for flag in flags if flag != "dead")]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=self.lab.tools.env, stdout=log, stderr=log)
        started = time.monotonic()
        if wait:
            until(
                15,
                lambda: self.subnet_file.exists() and self.subnet_file.stat().st_mtime_ns != before,
                lambda: f"ready:\n{self.log}",
            )
        return time.monotonic() - started

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(10)
        self.process = None
        return status

    @property
    def subnet(self) -> ipaddress.IPv4Network:
        lines = dict(line.split("=", 1) for line in self.subnet_file.read_text().splitlines())
        return ipaddress.IPv4Interface(lines["FLANNEL_SUBNET"]).network

    @property
    def key(self) -> str:
        return str(self.subnet).replace("/", "-")

    @property
    def mac(self) -> str:
        return str(json.loads(self.ip("-j", "link", "show", "flannel.1"))[0]["address"])

    def bridge_up(self) -> str:
        """Give the machine the first address of its subnet on a bridge, as the CNI plugin would; returns it."""
        gateway = str(self.subnet.network_address + 1)
        self.ip("link", "add", "cni0", "type", "bridge", check=False)
        self.ip("link", "set", "cni0", "up")
        self.ip("addr", "replace", f"{gateway}/24", "dev", "cni0")
        return gateway

    def knows(self, peer: Machine) -> bool:
        """Tell whether route, neighbour and forwarding entry of a peer are there."""
        first = str(peer.subnet.network_address)
        return (
            f"{peer.subnet} via {first} dev flannel.1 onlink" in " ".join(self.ip("route").split()).replace(" \n", "\n")
            and "PERMANENT" in self.ip("neigh", "show", first, "dev", "flannel.1", check=False)
            and f"dst {peer.address} " in self.fdb()
        )

    def pings(self, source: str, target: str, *words: str) -> str:
        return self.exec("ping", "-c", "1", "-W", "1", "-I", source, *words, target, check=False)


class Lab:
    """A bridge namespace with etcd in it, and machines."""

    def __init__(self, directory: Path, tools: Tools, pyz: Path) -> None:
        self.name = f"kwfl{os.getpid()}"
        self.switch = f"{self.name}-sw"
        self.directory, self.tools, self.pyz = directory, tools, pyz
        self.machines: list[Machine] = []
        self.pki = Pki(directory)
        run("ip", "netns", "add", self.switch)
        try:
            run("ip", "-n", self.switch, "link", "set", "lo", "up")
            run("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge")
            run("ip", "-n", self.switch, "link", "set", "br0", "up")
            run("ip", "-n", self.switch, "addr", "add", f"{ETCD_ADDRESS}/24", "dev", "br0")
            self.etcd = Etcd(self.switch, tools, self.pki, directory)
            self.etcd.start()
        except BaseException:
            self.close()
            raise

    def configure(self, config: dict[str, Any]) -> None:
        self.etcd.client("put", f"{PREFIX}/config", json.dumps(config))

    def machine(self) -> Machine:
        made = Machine(self, len(self.machines) + 1)
        self.machines.append(made)
        return made

    def close(self) -> None:
        for machine in self.machines:
            if machine.process is not None:
                machine.process.kill()
                machine.process.wait(10)
            run("ip", "netns", "del", machine.namespace, check=False)
        if hasattr(self, "etcd"):
            self.etcd.stop()
        run("ip", "netns", "del", self.switch, check=False)


@contextmanager
def lab(directory: Path, tools: Tools, pyz: Path) -> Iterator[Lab]:
    made = Lab(directory, tools, pyz)
    try:
        yield made
    finally:
        made.close()

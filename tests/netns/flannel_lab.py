"""Machines made of network namespaces, a real etcd with TLS, and flanneld processes run from the built file."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import re
import signal
import socket
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
    *("nftables", "libnftables1", "libmnl0", "libjansson4", "libedit2", "libbsd0", "libmd0", "libgmp10"),
)


class Tools:
    """etcd, ping, iptables and nft of Debian packages unpacked into the cache, whatever the machine has."""

    def __init__(self, work: Path) -> None:
        self.bin = work / "bin"
        self.bin.mkdir()
        root = unpacked("flannel", _PACKAGES)
        libraries = next((root / "usr/lib").glob("*-linux-gnu"))
        self.env = {
            "PATH": f"{self.bin}:/usr/sbin:/usr/bin:/sbin:/bin",
            "LD_LIBRARY_PATH": str(libraries),
            "XTABLES_LIBDIR": str(libraries / "xtables"),
        }
        self.etcd = str(root / "usr/bin/etcd")
        (self.bin / "ping").symlink_to(root / "bin/ping")
        (self.bin / "nft").symlink_to(root / "usr/sbin/nft")
        self._programs = root / "usr/sbin"
        self.use_iptables("nft")

    def use_iptables(self, kind: str) -> None:
        """Let `iptables` be its "legacy" or its "nft" kind."""
        for family in ("iptables", "ip6tables"):
            for name in (family, f"{family}-save", f"{family}-restore"):
                (self.bin / name).unlink(missing_ok=True)
                (self.bin / name).symlink_to(self._programs / f"xtables-{kind}-multi")


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
            "import json, sys; from flanneld.etcd.v3 import EtcdClient; from flanneld.etcd.transport import Cluster;"
            "from flanneld.options import EtcdOptions;"
            "c = EtcdClient(Cluster(EtcdOptions((sys.argv[1],), *sys.argv[2:5])));"
            "print(json.dumps(getattr(c, sys.argv[5])(*json.loads(sys.argv[6]))))"
        )
        python = [sys.executable, "-c", code, self.url, str(self.pki.ca), str(self.pki.client)]
        python += [str(Pki.key(self.pki.client)), function, json.dumps(arguments)]
        return json.loads(run("ip", "netns", "exec", self.namespace, *python))

    def request(self, path: str, body: dict[str, Any]) -> Any:
        return self.client("_call", "test", path.removeprefix("/v3"), body)

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
    """A namespace with an interface eth0 on a bridge of the lab, and a flanneld in it.

    `segment`: 60 is where etcd is, 61 is behind a router. `beside`: another daemon in the namespace of that machine.
    """

    def __init__(self, lab: Lab, number: int, *, segment: int = 60, beside: Machine | None = None) -> None:
        self.lab = lab
        self.number = number
        self.prefix = PREFIX
        self.directory = lab.directory / f"m{number}"
        self.directory.mkdir()
        self.process: subprocess.Popen[bytes] | None = None
        self.flags: tuple[str, ...] = ()
        self.wrapper: tuple[str, ...] = ()
        self.python = "/usr/bin/python3"
        self.environ: dict[str, str] = {}
        if beside is not None:
            self.namespace, self.address, self.address6 = beside.namespace, beside.address, beside.address6
            return
        self.namespace = f"{lab.name}-m{number}"
        self.address, self.address6 = f"192.168.{segment}.{number}", f"fd60:{segment}::{number:x}"
        bridge = lab.segment(segment)
        run("ip", "netns", "add", self.namespace)
        peer = ["peer", "name", "eth0", "netns", self.namespace]
        run("ip", "link", "add", f"kv{number}", "netns", bridge, "type", "veth", *peer)
        run("ip", "-n", bridge, "link", "set", f"kv{number}", "master", "br0", "up")
        self.exec("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.ip("link", "set", "lo", "up")
        self.ip("link", "set", "eth0", "up")
        self.ip("addr", "add", f"{self.address}/24", "dev", "eth0")
        self.ip("addr", "add", f"{self.address6}/64", "dev", "eth0", "nodad")
        self.ip("route", "add", "default", "via", f"192.168.{segment}.254")
        self.ip("route", "add", "default", "via", f"fd60:{segment}::fe")

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
        path = self.directory / "log"
        return path.read_text() if path.exists() else ""

    def start(self, *flags: str, wait: bool = True) -> float:
        """Start flanneld; returns the seconds until it said that it is ready."""
        pki = self.lab.pki
        command = ["ip", "netns", "exec", self.namespace, *self.wrapper, self.python, str(self.lab.pyz)]
        command += (
            [f"-etcd-endpoints=https://192.168.60.253:2379,{self.lab.etcd.url}"]
            if "dead" in flags
            else [f"-etcd-endpoints={self.lab.etcd.url}"]
        )
        command += [f"-etcd-cafile={pki.ca}", f"-etcd-certfile={pki.client}", "-etcd-keyfile", str(Pki.key(pki.client))]
        command += [f"-etcd-prefix={self.prefix}"]
        command += [f"--subnet-file={self.subnet_file}", "-ip-masq", f"-cni-conf={self.directory}/10-flannel.conflist"]
        command += [f"-healthz-port={8400 + self.number}", "-healthz-ip=127.0.0.1"]
        command += [flag for flag in (*self.flags, *flags) if flag != "dead"]
        path = self.directory / "notify"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, (self.directory / "log").open("ab") as log:
            notified.bind(str(path))
            env = {**self.lab.tools.env, **self.environ, "NOTIFY_SOCKET": str(path), "PYTHONFAULTHANDLER": "1"}
            started = time.monotonic()
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
            while wait:
                left = started + 15 - time.monotonic()
                if left <= 0:
                    self.process.send_signal(signal.SIGABRT)  # has Python tell where each thread is
                    self.process.wait(10)
                assert left > 0, f"not ready:\n{self.log}"
                assert self.process.poll() is None, f"ended:\n{self.log}"
                notified.settimeout(min(left, 1.0))
                with contextlib.suppress(TimeoutError):
                    if b"READY=1" in notified.recv(4096).split(b"\n"):
                        break
            return time.monotonic() - started

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(10)
        self.process = None
        return status

    @property
    def env(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.subnet_file.read_text().splitlines())

    @property
    def subnet(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Interface(self.env["FLANNEL_SUBNET"]).network

    @property
    def subnet6(self) -> ipaddress.IPv6Network:
        return ipaddress.IPv6Interface(self.env["FLANNEL_IPV6_SUBNET"]).network

    @property
    def key(self) -> str:
        return str(self.subnet).replace("/", "-")

    @property
    def gateway(self) -> str:
        """The first address of the subnet, which `bridge_up` gives to a bridge."""
        return str(self.subnet.network_address + 1)

    @property
    def mac(self) -> str:
        return str(json.loads(self.ip("-j", "link", "show", "flannel.1"))[0]["address"])

    def bridge_up(self, name: str = "cni0") -> str:
        """Give the machine the first addresses of its subnets on a bridge, as the CNI plugin would; returns IPv4's."""
        self.ip("link", "add", name, "type", "bridge", check=False)
        self.ip("link", "set", name, "up")
        self.ip("addr", "replace", f"{self.gateway}/{self.subnet.prefixlen}", "dev", name)
        if "FLANNEL_IPV6_SUBNET" in self.env:
            self.ip("addr", "replace", self.env["FLANNEL_IPV6_SUBNET"], "dev", name, "nodad")
        return self.gateway

    def health(self, path: str) -> str:
        """What the health server answers, whatever the status."""
        code = (
            "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]), timeout=5);"
            "c.request('GET', sys.argv[2]); r = c.getresponse(); print(r.status, r.read().decode())"
        )
        return self.exec("/usr/bin/python3", "-c", code, str(8400 + self.number), path).strip()

    def figure(self, name: str) -> float:
        """A figure of /metrics, summed over its labels."""
        lines = [line for line in self.health("/metrics").splitlines() if re.match(rf"{name}[ {{]", line)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def ready(self) -> bool:
        """Tell whether the daemon says that everything is as it should be."""
        try:
            return self.health("/readyz").startswith("200")
        except AssertionError:
            return False

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
    """A bridge namespace with etcd in it, and machines; on demand a second bridge behind a router."""

    def __init__(self, directory: Path, tools: Tools, pyz: Path) -> None:
        self.name = f"kwfl{os.getpid()}"
        self.switch = f"{self.name}-sw"
        self.directory, self.tools, self.pyz = directory, tools, pyz
        self.machines: list[Machine] = []
        self._segments: dict[int, str] = {}
        self._made = 0
        self.pki = Pki(directory)
        try:
            self.segment(60)
            self.etcd = Etcd(self.switch, tools, self.pki, directory)
            self.etcd.start()
        except BaseException:
            self.close()
            raise

    def segment(self, number: int) -> str:
        """The namespace of a segment's bridge, whose address is the machines' gateway; made when there is none."""
        if number in self._segments:
            return self._segments[number]
        name = self.switch if number == 60 else f"{self.name}-s{number}"
        self._segments[number] = name
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        # A bridge without an address of its own takes one of its ports': it changes with a machine that goes, and
        # connections to etcd stand still until the others ask for it again.
        run("ip", "-n", name, "link", "add", "br0", "address", f"02:00:00:00:fe:{number:02x}", "type", "bridge")
        run("ip", "-n", name, "link", "set", "br0", "up")
        run("ip", "-n", name, "addr", "add", f"192.168.{number}.254/24", "dev", "br0")
        run("ip", "-n", name, "addr", "add", f"fd60:{number}::fe/64", "dev", "br0", "nodad")
        if number != 60:
            self._connect(name, number)
        return name

    def _connect(self, name: str, number: int) -> None:
        """Let the first segment's namespace route to this one."""
        run(
            "ip",
            "link",
            "add",
            f"up{number}",
            "netns",
            self.switch,
            "type",
            "veth",
            "peer",
            "name",
            "up0",
            "netns",
            name,
        )
        for namespace, device, own, peer, to in (
            (self.switch, f"up{number}", "1", "2", number),
            (name, "up0", "2", "1", 60),
        ):
            run("ip", "-n", namespace, "link", "set", device, "up")
            run("ip", "-n", namespace, "addr", "add", f"172.16.{number}.{own}/30", "dev", device)
            run("ip", "-n", namespace, "route", "add", f"192.168.{to}.0/24", "via", f"172.16.{number}.{peer}")
            run("ip", "netns", "exec", namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1")

    def configure(self, config: dict[str, Any], prefix: str = PREFIX) -> None:
        self.etcd.client("put", f"{prefix}/config", json.dumps(config))

    def machine(self, segment: int = 60, beside: Machine | None = None) -> Machine:
        self._made += 1
        made = Machine(self, self._made, segment=segment, beside=beside)
        self.machines.append(made)
        return made

    def remove(self, machine: Machine) -> None:
        """Kill a machine's daemon, and take its namespace away with the last of its daemons."""
        if machine.process is not None:
            machine.process.kill()
            machine.process.wait(10)
            machine.process = None
        self.machines.remove(machine)
        if all(one.namespace != machine.namespace for one in self.machines):
            run("ip", "netns", "del", machine.namespace, check=False)

    def close(self) -> None:
        for machine in list(self.machines):
            self.remove(machine)
        if hasattr(self, "etcd"):
            self.etcd.stop()
        for name in self._segments.values():
            run("ip", "netns", "del", name, check=False)


class Network:
    """A network of its own below a prefix of its own, in a lab that others use as well."""

    def __init__(self, lab: Lab, name: str, config: dict[str, Any]) -> None:
        self.lab, self.prefix = lab, f"/{name}"
        self.machines: list[Machine] = []
        lab.configure(config, self.prefix)

    def configure(self, config: dict[str, Any]) -> None:
        self.lab.configure(config, self.prefix)

    def machine(self, *flags: str, segment: int = 60, beside: Machine | None = None) -> Machine:
        """A machine whose daemon is not started yet."""
        made = self.lab.machine(segment, beside)
        made.prefix, made.flags = self.prefix, flags
        self.machines.append(made)
        return made

    def started(self, count: int, *flags: str) -> list[Machine]:
        """Machines whose daemons are ready, each with a bridge."""
        machines = [self.machine(*flags) for _ in range(count)]
        for machine in machines:
            machine.start()
            machine.bridge_up()
        return machines

    def keys(self) -> dict[str, str]:
        """Return value by the last part of the key of all leases."""
        items = self.lab.etcd.client("list", f"{self.prefix}/subnets/")[1]
        return {item[0].rsplit("/", 1)[1]: item[1] for item in items}

    def close(self) -> None:
        for machine in self.machines:
            assert "Traceback" not in machine.log, machine.log
            self.lab.remove(machine)


@contextmanager
def lab(directory: Path, tools: Tools, pyz: Path) -> Iterator[Lab]:
    made = Lab(directory, tools, pyz)
    try:
        yield made
    finally:
        made.close()


def every_pair_pings(machines: list[Machine], size: int = 56) -> None:
    """Every machine's bridge address reaches every other's, both IP versions where there are two.

    The first packet may be lost while the machines learn each other's MACs.
    """
    for machine in machines:
        for peer in machines:
            if peer is machine:
                continue
            pairs = [(machine.gateway, peer.gateway)]
            if "FLANNEL_IPV6_SUBNET" in machine.env:
                pairs.append((str(machine.subnet6.network_address + 1), str(peer.subnet6.network_address + 1)))
            for source, target in pairs:
                until(
                    3,
                    lambda m=machine, s=source, t=target: " 0% packet loss" in m.pings(s, t, "-s", str(size)),
                    lambda m=machine, s=source, t=target: f"{s} -> {t}\n{m.ip('route')}{m.fdb()}{m.log[-2000:]}",
                )

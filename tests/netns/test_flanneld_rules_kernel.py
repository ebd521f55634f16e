"""The traffic rules in real kernels: both variants of iptables, ip6tables, and nft."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from debian_packages import unpacked
from flannel_lab import run, until

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = f"kwru{os.getpid()}"
_PACKAGES = (
    *("iptables", "libip4tc2", "libip6tc2", "libnetfilter-conntrack3", "libnfnetlink0", "libxtables12"),
    *("nftables", "libnftables1", "libnftnl11", "libmnl0", "libjansson4", "libedit2", "libbsd0", "libmd0", "libgmp10"),
)
N4, S4, N6, S6 = "10.5.0.0/16", "10.5.66.0/24", "fc00::/48", "fc00:0:0:7::/64"
BOTH = {"4": [N4, S4], "6": [N6, S6]}
MASQ = '-m comment --comment "flanneld masq"'

# What runs as the daemon's thread does: one line of JSON in, one out; every program that is started is noted.
DRIVER = """
import ipaddress, json, resource, subprocess, sys, time
from flanneld.errors import RulesError
from flanneld.metrics import FIGURES
from flanneld.rules import command, iptables
from flanneld.rules.engine import make_rules
from flanneld.rules.spec import RuleSpec

started, original = [], subprocess.run
def noting(command, **options):
    started.append(" ".join(command[:2]))
    return original(command, **options)
subprocess.run = noting
net = ipaddress.ip_network
rules = None
offset, clock = 0, time.monotonic
time.monotonic = lambda: clock() + offset
for line in sys.stdin:
    asked = json.loads(line)
    del started[:]
    offset += asked.get("later", 0)
    if "lock_wait" in asked:
        command.LOCK_WAIT = iptables.LOCK_WAIT = asked["lock_wait"]
    if rules is None or asked.get("new"):
        rules = make_rules(asked.get("nftables", False), [net(one) for one in asked.get("former", ())])
    networks = {int(version): tuple(map(net, pair)) for version, pair in asked.get("networks", {}).items()}
    spec = RuleSpec(networks, asked.get("masquerade", True), asked.get("forward", True))
    before = sum(resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime
                 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    answer = {"error": "", "wrong": []}
    try:
        for _ in range(asked.get("times", 1)):
            answer["wrong"] = getattr(rules, asked["do"])(*([spec] if networks else []))
    except RulesError as error:
        answer["error"] = str(error)
    answer["cpu"] = sum(resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime
                        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) - before
    answer["started"] = list(started)
    answer["repairs"] = FIGURES.value("flannel_rule_repairs_total")
    print(json.dumps(answer), flush=True)
"""


class Programs:
    """iptables in both variants and nft, of Debian packages, in directories for PATH."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.root = unpacked("filters", _PACKAGES)
        libraries = next((self.root / "usr/lib").glob("*-linux-gnu"))
        shared = [libraries, next((self.root / "lib").glob("*-linux-gnu"), libraries)]
        self.libraries = {
            "LD_LIBRARY_PATH": ":".join(map(str, shared)),
            "XTABLES_LIBDIR": str(libraries / "xtables"),
        }
        # What a test takes away must not be found elsewhere.
        self.basic = work / "basic"
        self.basic.mkdir()
        for name in ("ip", "sysctl", "sh", "setpriv", "cat", "flock"):
            found = next(
                path for one in ("/usr/sbin", "/usr/bin", "/sbin", "/bin") if (path := Path(one, name)).exists()
            )
            (self.basic / name).symlink_to(found)

    def environment(self, default: str, nft: bool = True, families: tuple[str, ...] = ("iptables", "ip6tables")) -> Any:
        """An environment in which `iptables` is of the variant `default`, empty: there is none."""
        directory = self.work / f"{default}-{nft}-{len(families)}"
        if not directory.is_dir():
            directory.mkdir()
            for family in families if default else ():
                for variant in ("", "-legacy", "-nft"):
                    multi = self.root / f"usr/sbin/xtables-{variant[1:] or default}-multi"
                    for verb in ("", "-save", "-restore"):
                        (directory / f"{family}{variant}{verb}").symlink_to(multi)
            if nft:
                (directory / "nft").symlink_to(self.root / "usr/sbin/nft")
        return {**self.libraries, "PATH": f"{directory}:{self.basic}", "PYTHONPATH": str(ROOT / "src")}


class Machine:
    """A namespace, and the rules' engine running in it."""

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        self.name, self.environment = name, environment
        self.engine: subprocess.Popen[str] | None = None
        run("ip", "netns", "add", name)

    def run(self, *command: str, check: bool = True) -> str:
        return run("ip", "netns", "exec", self.name, *command, env=self.environment, check=check)

    def feed(self, *command: str, text: str) -> None:
        words = ["ip", "netns", "exec", self.name, *command]
        subprocess.run(words, input=text, text=True, env=self.environment, timeout=30, check=True)

    def start(self, *prefix: str) -> None:
        self.stop()
        words = ["ip", "netns", "exec", self.name, *prefix, sys.executable, "-c", DRIVER]
        self.engine = subprocess.Popen(
            words,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, do: str, **options: Any) -> dict[str, Any]:
        if self.engine is None:
            self.start()
        assert self.engine is not None
        assert self.engine.stdin is not None
        assert self.engine.stdout is not None
        self.engine.stdin.write(json.dumps({"do": do, **options}) + "\n")
        self.engine.stdin.flush()
        answer: dict[str, Any] = json.loads(self.engine.stdout.readline())
        return answer

    def ensure(self, **options: Any) -> list[str]:
        """Ensure the rules of both families; nothing may go wrong."""
        answer = self.ask("ensure", **{"networks": BOTH, **options})
        assert answer["error"] == ""
        return list(answer["wrong"])

    def rules(self, family: str = "iptables") -> list[str]:
        return [line for line in self.run(f"{family}-save").splitlines() if line.startswith("-A ")]

    def table(self, version: int) -> list[str]:
        family, name = ("ip", "flannel-ipv4") if version == 4 else ("ip6", "flannel-ipv6")
        lines = [line.strip() for line in self.run("nft", "list", "table", family, name, check=False).splitlines()]
        second = lines.index("chain postrtg {") if "chain forward {" in lines[:2] else 0
        # A chain that was made anew is listed last.
        return lines if not second else [lines[0], *lines[second:-1], "", *lines[1 : second - 1], "}"]

    def everything(self) -> str:
        saves = ["iptables-legacy-save", "ip6tables-legacy-save", "iptables-nft-save", "ip6tables-nft-save"]
        return "".join(self.run(one) for one in saves) + self.run("nft", "list", "ruleset")

    def stop(self) -> None:
        if self.engine is not None:
            assert self.engine.stdin is not None
            self.engine.stdin.close()
            self.engine.wait(40)
            self.engine = None

    def close(self) -> None:
        if self.engine is not None:
            self.engine.kill()
            self.engine.wait(10)
        run("ip", "netns", "del", self.name, check=False)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    return Programs(tmp_path_factory.mktemp("programs"))


@contextlib.contextmanager
def machine_of(environment: dict[str, str], name: str = NAME) -> Iterator[Machine]:
    made = Machine(name, environment)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(params=["nft", "legacy"])
def machine(request: pytest.FixtureRequest, programs: Programs) -> Iterator[Machine]:
    """A machine with iptables of either variant."""
    with machine_of(programs.environment(request.param)) as made:
        yield made


@pytest.fixture
def nft_machine(programs: Programs) -> Iterator[Machine]:
    with machine_of(programs.environment("nft")) as made:
        yield made


def golden(network: str, subnet: str, multicast: str) -> list[str]:
    forward = '-m comment --comment "flanneld forward"'
    return [
        f"-A FORWARD {forward} -j FLANNEL-FWD",
        f"-A FLANNEL-FWD -s {network} {forward} -j ACCEPT",
        f"-A FLANNEL-FWD -d {network} {forward} -j ACCEPT",
        f"-A POSTROUTING {MASQ} -j FLANNEL-POSTRTG",
        f"-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {MASQ} -j RETURN",
        f"-A FLANNEL-POSTRTG -s {subnet} -d {network} {MASQ} -j RETURN",
        f"-A FLANNEL-POSTRTG -s {network} -d {subnet} {MASQ} -j RETURN",
        f"-A FLANNEL-POSTRTG ! -s {network} -d {subnet} {MASQ} -j RETURN",
        f"-A FLANNEL-POSTRTG -s {network} ! -d {multicast} {MASQ} -j MASQUERADE --random-fully",
        f"-A FLANNEL-POSTRTG ! -s {network} -d {network} {MASQ} -j MASQUERADE --random-fully",
    ]


GOLDEN4, GOLDEN6 = golden(N4, S4, "224.0.0.0/4"), golden(N6, S6, "ff00::/8")


def golden_table(version: int) -> list[str]:
    family, network, subnet, multicast = ("ip", N4, S4, "224.0.0.0/4") if version == 4 else ("ip6", N6, S6, "ff00::/8")
    masq, forward = 'comment "flanneld masq"', 'comment "flanneld forward"'
    return [
        f"table {family} flannel-ipv{version} {{",
        "chain postrtg {",
        "type nat hook postrouting priority srcnat; policy accept;",
        f"meta mark & 0x00004000 == 0x00004000 return {masq}",
        f"{family} saddr {subnet} {family} daddr {network} return {masq}",
        f"{family} saddr {network} {family} daddr {subnet} return {masq}",
        f"{family} saddr != {network} {family} daddr {subnet} return {masq}",
        f"{family} saddr {network} {family} daddr != {multicast} masquerade fully-random {masq}",
        f"{family} saddr != {network} {family} daddr {network} masquerade fully-random {masq}",
        "}",
        "",
        "chain forward {",
        "type filter hook forward priority filter; policy accept;",
        f"{family} saddr {network} accept {forward}",
        f"{family} daddr {network} accept {forward}",
        "}",
        "}",
    ]


def same(found: list[str], wanted: list[str]) -> None:
    """Compare what a table's order does not matter for: variants print the tables in different order."""
    for table in ("FORWARD", "FLANNEL-FWD", "POSTROUTING", "FLANNEL-POSTRTG"):
        starts = f"-A {table} "
        assert [line for line in found if line.startswith(starts)] == [one for one in wanted if one.startswith(starts)]


def test_golden_text_of_both_families(machine: Machine) -> None:
    assert len(machine.ensure()) == 8
    same(machine.rules(), GOLDEN4)
    same(machine.rules("ip6tables"), GOLDEN6)
    assert machine.ensure() == []
    machine.start()
    answer = machine.ask("ensure", networks=BOTH)
    assert answer["wrong"] == []
    assert not any("restore" in one for one in answer["started"]), "a restart rewrites nothing"


DAMAGES = {
    "deleted": ["{x} -t nat -D FLANNEL-POSTRTG 2"],
    "reordered": [
        "{x} -t nat -D FLANNEL-POSTRTG 1",
        "{x} -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN",
    ],
    "duplicated": ["{x} -A FLANNEL-FWD -j ACCEPT"],
    "flushed": ["{x} -t nat -F FLANNEL-POSTRTG", "{x} -F FLANNEL-FWD"],
    "everything flushed": ["{x} -t nat -F", "{x} -t nat -X", "{x} -F", "{x} -X"],
    "jump doubled": ["{x} -t nat -I POSTROUTING -j FLANNEL-POSTRTG"],
    "jump lost": ["{x} -D FORWARD -m comment --comment flanneld\\ forward -j FLANNEL-FWD"],
    "address changed": [
        "{x} -t nat -R FLANNEL-POSTRTG 2 "
        "$([ {x} = iptables ] && echo -s 10.5.67.0/24 -d 10.5.0.0/16 || echo -s fc00:0:0:8::/64 -d fc00::/48) "
        "-m comment --comment flanneld\\ masq -j RETURN"
    ],
    "replaced": ["{x} -t nat -R FLANNEL-POSTRTG 3 ! -o lo -j ACCEPT"],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_repaired_and_foreign_rules_stay(machine: Machine, damage: str) -> None:
    machine.run("iptables", "-A", "FORWARD", "-s", "203.0.113.7", "-j", "ACCEPT")
    machine.ensure()
    foreign = ["-t", "nat", "-A", "POSTROUTING", "-s", "203.0.113.8", "-m", "comment", "--comment", 'it\'s "mine"']
    machine.run("iptables", *foreign, "-j", "MASQUERADE")
    assert machine.ensure() == []
    repairs = machine.ask("ensure", networks=BOTH)["repairs"]
    for family in ("iptables", "ip6tables"):
        for command in DAMAGES[damage]:
            machine.run("sh", "-c", command.format(x=family))
    answer = machine.ask("ensure", networks=BOTH)
    assert answer["error"] == ""
    assert any(one.startswith("iptables: ") for one in answer["wrong"])
    assert any(one.startswith("ip6tables: ") for one in answer["wrong"])
    assert answer["repairs"] == repairs + 1
    own = [line for line in machine.rules() if "203.0.113" not in line]
    same(own, GOLDEN4)
    same(machine.rules("ip6tables"), GOLDEN6)
    if damage != "everything flushed":
        assert sum("203.0.113" in line for line in machine.rules()) == 2
    answer = machine.ask("ensure", networks=BOTH)
    assert (answer["wrong"], answer["started"]) == ([], [])


def test_comments_of_others_are_in_any_encoding(machine: Machine) -> None:
    machine.ensure()
    comment = ["-m", "comment", "--comment", os.fsdecode(b"caf\xe9")]
    machine.run("iptables", "-A", "INPUT", *comment, "-j", "ACCEPT")
    machine.run("iptables", "-t", "nat", "-A", "POSTROUTING", *comment, "-j", "ACCEPT")
    # One that has to be deleted, too: by its own octets.
    machine.run("iptables", "-t", "nat", "-A", "POSTROUTING", *comment, "-j", "FLANNEL-POSTRTG")
    assert machine.ensure(new=True) == ["iptables: POSTROUTING jumps to FLANNEL-POSTRTG 2 times instead of once"]
    assert machine.ensure(new=True) == []
    save = ["ip", "netns", "exec", NAME, "iptables-save"]
    printed = subprocess.run(save, env=machine.environment, capture_output=True, check=True).stdout.split(b"\n")
    strange = [line for line in printed if b"caf" in line]
    assert sorted(line[:10] for line in strange) == [b"-A INPUT -", b"-A POSTROU"]
    assert all(b"--comment caf\xe9 -j ACCEPT" in line.replace(b'"', b"") for line in strange)


def test_foreign_changes_cost_a_look_and_no_rewrite(machine: Machine) -> None:
    machine.ensure()
    # As Docker and kube-proxy do: chains of their own, before and after ours, filled and emptied, in the same tables.
    for chain, times in (("DOCKER", 1), ("DOCKER", 3), ("KUBE-SERVICES", 2), ("DOCKER", 0)):
        rules = f"-A {chain} -d 10.96.0.1/32 -j RETURN\n" * times
        machine.feed("iptables-restore", "--noflush", text=f"*nat\n:{chain} - [0:0]\n{rules}COMMIT\n")
        answer = machine.ask("ensure", networks=BOTH)
        assert (answer["wrong"], answer["started"]) == ([], []), "their chains are not in the way of ours"
    machine.run("iptables", "-t", "nat", "-I", "POSTROUTING", "-j", "KUBE-SERVICES")
    answer = machine.ask("ensure", networks=BOTH)
    assert answer["wrong"] == []
    assert sorted(answer["started"]) == ["ip6tables --version", "ip6tables-save", "iptables --version", "iptables-save"]
    assert machine.ask("ensure", networks=BOTH)["started"] == []


def test_each_minute_all_is_compared_whatever_the_kernel_says(machine: Machine) -> None:
    machine.ensure()
    assert machine.ask("ensure", networks=BOTH, later=50)["started"] == []
    answer = machine.ask("ensure", networks=BOTH, later=600)
    assert "iptables-save" in answer["started"]
    assert answer["wrong"] == []
    assert machine.ask("ensure", networks=BOTH)["started"] == []


def test_counters_are_not_a_change(machine: Machine) -> None:
    machine.run("ip", "link", "set", "lo", "up")
    machine.run("ip", "addr", "add", "10.5.66.1/24", "dev", "lo")
    machine.ensure()
    send = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('10.5.66.1', 9))"
    machine.run(sys.executable, "-c", send)
    counted = machine.run("iptables-save", "-c")
    assert re.search(r"\[[1-9]\d*:\d+\] -A POSTROUTING", counted), counted
    assert machine.ask("ensure", networks=BOTH)["started"] == []
    machine.run("iptables", "-t", "nat", "-N", "FOREIGN")
    assert machine.ask("ensure", networks=BOTH)["started"] == []


@pytest.mark.parametrize("mode", ["nft", "legacy", "nftables"])
def test_idle_checks_cost_next_to_nothing(programs: Programs, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    nftables = mode == "nftables"
    with machine_of(programs.environment("nft" if nftables else mode)) as machine:
        machine.ensure(nftables=nftables)
        idle = machine.ask("ensure", networks=BOTH, times=20)
        assert idle["started"] == []
        rebuilt = machine.ask("ensure", networks=BOTH, nftables=nftables, new=True)["cpu"]
        with capsys.disabled():
            print(f"\n{mode}: 20 idle checks {idle['cpu'] * 1e3:.2f} ms, a full one {rebuilt * 1e3:.1f} ms")  # noqa: T201
        # Every 5 s, and a full comparison a minute: 0.2 % of a core is the whole daemon's.
        assert idle["cpu"] / 20 / 5 + rebuilt / 60 < 0.002


# The daemon's thread, as it runs in it; at the end of its input it says what it cost, and what its trouble is.
GUARD = """
import ipaddress, json, logging, resource, sys, time
from flanneld.guard import RulesGuard
from flanneld.rules.engine import make_rules
from flanneld.rules.spec import RuleSpec

logging.basicConfig(level=logging.DEBUG)
networks = {4: tuple(map(ipaddress.ip_network, sys.argv[2:]))}
guard = RulesGuard(make_rules(sys.argv[1] == "nftables"), RuleSpec(networks, True, True), 1.0, lambda: None, bridged=0)
guard.start()
while guard.trouble:
    time.sleep(0.01)
print("ready", file=sys.stderr, flush=True)
def cpu():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
before = cpu()
sys.stdin.read()
print(json.dumps([cpu() - before, guard.trouble]))
"""


@pytest.mark.parametrize("mode", ["nft", "legacy", "nftables"])
def test_a_busy_kube_proxy_costs_little_and_is_not_mentioned(
    programs: Programs, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds, variant = 20, "nft" if mode == "nftables" else mode
    with machine_of(programs.environment(variant)) as machine:
        words = ["ip", "netns", "exec", NAME, sys.executable, "-c", GUARD, mode, N4, S4]
        guard = subprocess.Popen(
            words, env=machine.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            assert guard.stderr is not None
            while guard.stderr.readline() != b"ready\n":
                assert guard.poll() is None
            chains = [f"KUBE-SVC-{number:04d}" for number in range(500)]
            declared = "".join(f":{chain} - [0:0]\n" for chain in chains)
            until_then, rewrites = time.monotonic() + seconds, 0
            while time.monotonic() < until_then:
                started = time.monotonic()
                rules = "".join(f"-A {one} -d 10.96.0.{rewrites % 250}/32 -j ACCEPT\n" for one in chains)
                machine.feed("iptables-restore", "--noflush", text=f"*nat\n{declared}{rules}COMMIT\n")
                rewrites += 1
                time.sleep(max(0.0, started + 0.2 - time.monotonic()))
            printed, said = guard.communicate(timeout=30)
        finally:
            guard.kill()
            guard.wait(10)
        cpu, trouble = json.loads(printed)
        with capsys.disabled():
            print(f"\n{mode}: {rewrites} rewrites of 500 chains in {seconds} s: {cpu / seconds:.3%} of a core")  # noqa: T201
        assert (trouble, said) == ("", b"")
        assert rewrites >= seconds, "fewer are no test"
        assert cpu / seconds < 0.01


def test_another_network_comes_without_a_moment_without_rules(machine: Machine) -> None:
    machine.ensure()
    script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do iptables-save -t nat; echo; done"
    words = ["ip", "netns", "exec", NAME, "sh", "-c", script]
    with subprocess.Popen(words, env=machine.environment, stdout=subprocess.PIPE, text=True) as watcher:
        other = {"4": ["10.9.0.0/16", "10.9.1.0/24"], "6": [N6, S6]}
        for networks in (other, BOTH, other, BOTH, other):
            assert machine.ensure(networks=networks) == [
                "iptables: chain FLANNEL-POSTRTG has other rules than it should",
                "iptables: chain FLANNEL-FWD has other rules than it should",
            ]
        seen = watcher.communicate(timeout=30)[0].split("\n\n")
    assert len(seen) >= 20
    for one in filter(None, seen):
        assert one.count("-A FLANNEL-POSTRTG") == 6, one
        assert one.count("-j FLANNEL-POSTRTG") == 1, one
    assert N4 not in machine.run("iptables-save")


def test_one_family_less_and_options_less(machine: Machine) -> None:
    machine.ensure()
    machine.ensure(networks={"4": [N4, S4]}, forward=False)
    assert machine.rules("ip6tables") == []
    same(machine.rules(), [line for line in GOLDEN4 if "FWD" not in line])
    machine.ensure(networks={"4": [N4, S4]}, forward=False, masquerade=False)
    assert machine.rules() == []


def test_a_start_removes_the_rules_of_the_network_before(machine: Machine) -> None:
    machine.ensure(networks={"4": ["10.9.0.0/16", "10.9.1.0/24"]})
    machine.start()
    machine.ensure(networks={"4": [N4, S4]})
    assert "10.9." in machine.run("iptables-save"), "another daemon's, for all that is known"
    machine.ensure(networks={"4": [N4, S4]}, new=True, former=["10.9.0.0/16"])
    same(machine.rules(), GOLDEN4)


OLD = f"""*nat
-A POSTROUTING -s {N4} -d {N4} -j RETURN
-A POSTROUTING -s {N4} ! -d 224.0.0.0/4 -j MASQUERADE
-A POSTROUTING ! -s {N4} -d {S4} -j RETURN
-A POSTROUTING ! -s {N4} -d {N4} -j MASQUERADE
-A POSTROUTING -s 203.0.113.9/32 -j MASQUERADE
COMMIT
*filter
-A FORWARD -s {N4} -j ACCEPT
-A FORWARD -d {N4} -j ACCEPT
COMMIT
"""
V0_20 = f"""*nat
:FLANNEL-POSTRTG - [0:0]
-I POSTROUTING {MASQ} -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -j RETURN
COMMIT
"""


def test_rules_of_go_daemons_of_all_versions_go(machine: Machine) -> None:
    # v0.11 in the built-in chains, v0.20 with its jump at the top, and these rules in the other variant of iptables.
    other = "legacy" if "nf_tables" in machine.run("iptables", "--version") else "nft"
    machine.feed("iptables-restore", "--noflush", text=OLD)
    machine.feed(f"iptables-{other}-restore", "--noflush", text=V0_20)
    assert machine.ask("ensure", networks=BOTH)["error"] == ""
    postrouting = [line for line in machine.rules() if line.startswith("-A POSTROUTING")]
    assert postrouting == ["-A POSTROUTING -s 203.0.113.9/32 -j MASQUERADE", GOLDEN4[3]]
    answer = machine.ask("remove", networks=BOTH)
    assert answer["error"] == ""
    assert len(answer["wrong"]) == 6, answer
    assert machine.ask("remove")["wrong"] == []
    left = [line for line in machine.everything().splitlines() if line.startswith("-A ")]
    assert left == ["-A POSTROUTING -s 203.0.113.9/32 -j MASQUERADE"]


NFT_DAMAGES = {
    "deleted": ["flush chain ip flannel-ipv4 forward"],
    "reordered": ["insert rule ip flannel-ipv4 postrtg ip saddr 10.5.0.0/16 ip daddr 10.5.66.0/24 return"],
    "duplicated": ['add rule ip6 flannel-ipv6 forward ip6 saddr fc00::/48 accept comment "flanneld forward"'],
    "table gone": ["delete table ip flannel-ipv4"],
    "table made anew": ["delete table ip flannel-ipv4", "add table ip flannel-ipv4"],
    "chain gone": ["flush chain ip flannel-ipv4 postrtg", "delete chain ip flannel-ipv4 postrtg"],
    "everything flushed": ["flush ruleset"],
    "policy": ["add chain ip flannel-ipv4 forward { policy drop; }"],
}


@pytest.mark.parametrize("damage", NFT_DAMAGES)
def test_nftables_mode(nft_machine: Machine, damage: str) -> None:
    machine = nft_machine
    assert machine.ensure(nftables=True) == ["table ip flannel-ipv4 is missing", "table ip6 flannel-ipv6 is missing"]
    assert machine.table(4) == golden_table(4)
    assert machine.table(6) == golden_table(6)
    machine.feed("nft", "-f", "-", text="add table ip mine\nadd chain ip mine c\nadd rule ip mine c accept\n")
    assert machine.ensure() == []
    machine.feed("nft", "-f", "-", text="\n".join(NFT_DAMAGES[damage]))
    assert machine.ensure() != []
    assert machine.table(4) == golden_table(4)
    assert machine.table(6) == golden_table(6)
    assert ("table ip mine" in machine.run("nft", "list", "ruleset")) == (damage != "everything flushed")
    assert machine.ask("ensure", networks=BOTH)["started"] == []
    assert len(machine.ask("remove", networks=BOTH)["wrong"]) == 2
    assert "flannel" not in machine.everything()


def test_a_change_of_the_mode_removes_the_other_rules(machine: Machine) -> None:
    machine.run("iptables", "-A", "FORWARD", "-s", "203.0.113.7", "-j", "ACCEPT")
    machine.ensure()
    second = {"4": ["10.6.0.0/16", "10.6.1.0/24"]}
    machine.ensure(networks=second, new=True)
    machine.ensure(nftables=True, new=True)
    assert machine.table(4) == golden_table(4)
    left = machine.rules()
    assert any("10.6.1.0/24" in line for line in left), "another daemon's rules stay"
    assert not any("10.5." in line for line in left)
    machine.ensure(nftables=True, new=True, networks=second)
    assert machine.rules() == ["-A FORWARD -s 203.0.113.7/32 -j ACCEPT"]
    assert machine.rules("ip6tables") == []
    machine.ensure(networks=second, new=True)
    assert "10.6." not in "".join(machine.table(4))
    machine.ensure(new=True)
    assert machine.table(4) == []


def test_mode_and_network_change_together(nft_machine: Machine) -> None:
    nft_machine.ensure(networks={"4": ["10.9.0.0/16", "10.9.1.0/24"]})
    nft_machine.ensure(nftables=True, new=True, former=["10.9.0.0/16"])
    assert nft_machine.rules() == []


@contextlib.contextmanager
def lock_held(seconds: float) -> Iterator[None]:
    """Hold the lock of iptables in another process."""
    words = ["flock", "-F", "-x", "/run/xtables.lock", "sleep", str(seconds)]
    with subprocess.Popen(words) as holder:
        until(10, _is_locked, "the lock is taken")
        try:
            yield
        finally:
            holder.terminate()


def _is_locked() -> bool:
    with Path("/run/xtables.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.fixture
def old_iptables(programs: Programs, tmp_path: Path) -> Any:
    """iptables 1.6.1 by its own account, which does not know -w for restore and takes no lock there."""
    environment = programs.environment("legacy")
    for name in ("iptables", "iptables-save", "iptables-restore"):
        real = programs.root / "usr/sbin/xtables-legacy-multi"
        script = '#!/bin/sh\n[ "$1" != --version ] || { echo "iptables v1.6.1"; exit; }\n'
        script += 'for word; do [ "$word" != -w ] || { echo "unrecognized option -w" >&2; exit 2; }; done\n'
        # A lock of its own stands for none at all.
        script += f'XTABLES_LOCKFILE={tmp_path}/lock exec {real} {name} "$@"\n'
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    return {**environment, "PATH": f"{tmp_path}:{environment['PATH']}"}


@pytest.mark.parametrize("age", ["new", "old"])
def test_the_lock_is_waited_for(programs: Programs, old_iptables: Any, age: str) -> None:
    environment = old_iptables if age == "old" else programs.environment("legacy")
    with machine_of(environment) as machine:
        machine.start()
        with lock_held(30):
            answer = machine.ask("ensure", networks={"4": [N4, S4]}, lock_wait=1)
        assert "fuser /run/xtables.lock" in answer["error"]
        assert machine.rules() == []
        started = time.monotonic()
        with lock_held(1.5):
            answer = machine.ask("ensure", networks={"4": [N4, S4]}, lock_wait=10)
            took = time.monotonic() - started
        assert answer["error"] == ""
        assert 1.0 < took < 9, "waited, and no longer than needed"
        random = " --random-fully"
        same(machine.rules(), [line.replace(random, "") if age == "old" else line for line in GOLDEN4])


@pytest.mark.parametrize("always", [False, True])
def test_a_rule_that_goes_between_look_and_change(programs: Programs, tmp_path: Path, always: bool) -> None:
    environment = programs.environment("nft")
    real = programs.root / "usr/sbin/xtables-nft-multi"
    # What it prints is already past: a jump that is not there any more.
    stale = f"*filter\n:FLANNEL-FWD - [0:0]\n{GOLDEN4[0]}\n{GOLDEN4[0]}\nCOMMIT\n"
    (tmp_path / "stale").write_text(stale)
    condition = "true" if always else f"mkdir {tmp_path}/once 2>/dev/null"
    script = f"#!/bin/sh\nif {condition}; then cat {tmp_path}/stale; else exec {real} iptables-save; fi\n"
    (tmp_path / "iptables-save").write_text(script)
    (tmp_path / "iptables-save").chmod(0o755)
    (tmp_path / "mkdir").symlink_to("/bin/mkdir")
    with machine_of({**environment, "PATH": f"{tmp_path}:{environment['PATH']}"}) as machine:
        answer = machine.ask("ensure", networks={"4": [N4, S4]})
        assert ("does a matching rule exist" in answer["error"]) == always, answer
        if not always:
            assert answer["error"] == ""
            same(machine.rules(), GOLDEN4)


TABLES_OF_NFT = {
    "unreadable": (
        "add table ip filter\nadd chain ip filter FORWARD { type filter hook forward priority 0; }\n"
        "add rule ip filter FORWARD ct state vmap { new : accept }\n",
        "iptables cannot read the table filter",
    ),
    "elsewhere": (
        "add table ip nat\nadd chain ip nat POSTROUTING { type nat hook postrouting priority 101; }\n",
        "iptables-restore failed with status 4: ",
    ),
}


@pytest.mark.parametrize("kind", TABLES_OF_NFT)
def test_tables_that_iptables_shares_with_nft(nft_machine: Machine, kind: str) -> None:
    machine = nft_machine
    text, said = TABLES_OF_NFT[kind]
    machine.feed("nft", "-f", "-", text=text)
    before = machine.run("nft", "list", "table", *text.split()[2:4])
    for _ in range(2):
        error = machine.ask("ensure", networks={"4": [N4, S4]})["error"]
        assert error.startswith(said)
        assert error.endswith("into a table of another name, or use EnableNFTables)")
        assert machine.run("nft", "list", "table", *before.split()[1:3]) == before, "nothing is added blindly"
    if kind == "unreadable":
        assert sum("FLANNEL-POSTRTG" in line for line in machine.rules()) == 7, "the other table is as it should be"
        assert machine.ensure(networks={"4": [N4, S4]}, forward=False) == []


def test_what_is_missing_is_named(programs: Programs) -> None:
    with machine_of(programs.environment("", nft=False)) as machine:
        error = machine.ask("ensure", networks=BOTH)["error"]
        assert error.startswith("iptables is not on PATH (install iptables")
        assert machine.ask("ensure", networks=BOTH, masquerade=False, forward=False)["error"] == ""
        assert machine.ask("remove", networks=BOTH)["wrong"] == []
        assert machine.ask("ensure", networks=BOTH, nftables=True, new=True)["error"].startswith("nft is not on PATH")
    with machine_of(programs.environment("nft", families=("iptables",))) as machine:
        assert machine.ask("ensure", networks=BOTH)["error"].startswith("ip6tables is not on PATH")


@pytest.mark.parametrize("mode", ["nft", "legacy", "nftables"])
def test_without_permission(programs: Programs, mode: str) -> None:
    nftables = mode == "nftables"
    with machine_of(programs.environment("nft" if nftables else mode)) as machine:
        machine.start("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
        error = machine.ask("ensure", networks=BOTH, nftables=nftables)["error"]
        assert "CAP_NET_ADMIN" in error
        assert "\n" not in error


RECEIVE = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as s:
    s.bind((sys.argv[1], 7000))
    s.settimeout(10)
    print("ready", flush=True)
    print(s.recvfrom(100)[1][0], flush=True)
"""
SEND = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as s:
    s.bind((sys.argv[1], 0))
    s.sendto(b"x", (sys.argv[2], 7000))
"""


def source_seen(sender: str, source: str, receiver: str, target: str) -> str:
    """The source address of a packet as its receiver sees it."""
    words = ["ip", "netns", "exec", receiver, sys.executable, "-c", RECEIVE, target]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        run("ip", "netns", "exec", sender, sys.executable, "-c", SEND, source, target)
        return process.communicate(timeout=15)[0].strip()


@pytest.fixture
def wired(request: pytest.FixtureRequest, programs: Programs) -> Iterator[Machine]:
    """A machine between a pod and the world, in which there is a peer outside of the network and one inside."""
    pod, world = f"{NAME}p", f"{NAME}w"
    with machine_of(programs.environment("nft" if request.param == "nftables" else request.param)) as machine:
        try:
            for name, device in ((pod, "pod0"), (world, "eth0")):
                run("ip", "netns", "add", name)
                run(*f"ip link add {device} netns {NAME} type veth peer name eth0 netns {name}".split())
                run("ip", "-n", NAME, "link", "set", device, "up")
                run("ip", "-n", name, "link", "set", "eth0", "up")
            for name, device, address in (
                (NAME, "lo", "203.0.113.1/32"),
                (NAME, "pod0", "10.5.66.1/24"),
                (NAME, "pod0", "fc00:0:0:7::1/64"),
                (NAME, "eth0", "192.0.2.1/24"),
                (NAME, "eth0", "2001:db8::1/64"),
                (pod, "eth0", "10.5.66.2/24"),
                (pod, "eth0", "fc00:0:0:7::2/64"),
                (world, "eth0", "192.0.2.9/24"),
                (world, "eth0", "2001:db8::9/64"),
                (world, "eth0", "10.5.77.2/32"),
                (world, "eth0", "fc00:0:0:8::2/128"),
            ):
                run(*f"ip -n {name} addr add {address} dev {device}".split(), *(["nodad"] if ":" in address else []))
            for name, route in (
                (pod, "default via 10.5.66.1"),
                (pod, "default via fc00:0:0:7::1"),
                (world, "10.5.66.0/24 via 192.0.2.1"),
                (world, "fc00:0:0:7::/64 via 2001:db8::1"),
                (NAME, "10.5.77.0/24 via 192.0.2.9"),
                (NAME, "fc00:0:0:8::/64 via 2001:db8::9"),
            ):
                run("ip", "-n", name, "route", "add", *route.split())
            machine.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
            yield machine
        finally:
            for name in (pod, world):
                run("ip", "netns", "del", name, check=False)


@pytest.mark.parametrize("wired", ["nft", "legacy", "nftables"], indirect=True)
def test_packets_are_masqueraded_outside_and_only_there(wired: Machine, request: pytest.FixtureRequest) -> None:
    nftables = "[nftables]" in request.node.name
    pod, world = f"{NAME}p", f"{NAME}w"
    if not nftables:
        for family in ("iptables", "ip6tables"):
            wired.run(family, "-P", "FORWARD", "DROP")  # as Docker sets it
    wired.ensure(nftables=nftables)
    assert source_seen(pod, "10.5.66.2", world, "192.0.2.9") == "192.0.2.1"
    assert source_seen(pod, "10.5.66.2", world, "10.5.77.2") == "10.5.66.2"
    assert source_seen(world, "192.0.2.9", pod, "10.5.66.2") == "192.0.2.9"
    assert source_seen(world, "10.5.77.2", pod, "10.5.66.2") == "10.5.77.2"
    assert source_seen(pod, "fc00:0:0:7::2", world, "2001:db8::9") == "2001:db8::1"
    assert source_seen(pod, "fc00:0:0:7::2", world, "fc00:0:0:8::2") == "fc00:0:0:7::2"
    assert source_seen(world, "2001:db8::9", pod, "fc00:0:0:7::2") == "2001:db8::9"
    # From an address of the machine that the others do not know to a pod elsewhere.
    assert source_seen(NAME, "203.0.113.1", world, "10.5.77.2") == "192.0.2.1"
    # What kube-proxy has marked is its own affair; other bits of the mark do not matter.
    wired.run("iptables", "-t", "mangle", "-A", "PREROUTING", "-j", "MARK", "--set-mark", "0x14000")
    assert source_seen(pod, "10.5.66.2", world, "192.0.2.9") == "10.5.66.2"
    assert wired.ask("ensure", networks=BOTH)["wrong"] == []

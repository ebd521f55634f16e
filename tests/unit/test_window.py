"""The window that slides over the machines of a play: alone, and under ansible-playbook itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kubewright import runlock, window
from kubewright.errors import UserError
from kubewright.window import Window

ROOT = Path(__file__).resolve().parents[2]
HOSTS = [f"n{number}" for number in range(1, 6)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "_POLL_SECONDS", 0.01)


def view(run: Path, host: str, size: int = 2) -> Window:
    return Window(run, "nodes", host, HOSTS, size)


class Entering(threading.Thread):
    """A machine that wants a place."""

    def __init__(self, run: Path, host: str, size: int = 2) -> None:
        super().__init__(daemon=True)
        self.window, self.blocked_by = view(run, host, size), ["nobody has said yet"]
        self.start()

    def run(self) -> None:
        self.blocked_by = self.window.enter()

    def is_in(self) -> bool:
        self.join(0.3)
        return not self.is_alive() and not self.blocked_by


def test_the_next_one_comes_as_soon_as_any_is_done(tmp_path: Path) -> None:
    one, two, three, four = (Entering(tmp_path, host) for host in HOSTS[:4])
    assert [each.is_in() for each in (one, two, three, four)] == [True, True, False, False]
    two.window.leave(failed=False)
    assert [each.is_in() for each in (three, four)] == [True, False]
    one.window.leave(failed=False)
    assert four.is_in()


def test_places_go_in_the_order_of_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = Entering(tmp_path, "n3", 1)
    assert not late.is_in()
    early = Entering(tmp_path, "n1", 1)
    assert early.is_in()
    early.window.leave(failed=False)
    assert not late.is_in()
    # n2 is not heard of: for so long it may only be late.
    monkeypatch.setattr(window, "_QUIET_SECONDS", 0.1)
    assert late.is_in()


def test_after_a_failure_nobody_gets_a_place_and_who_is_in_goes_on(tmp_path: Path) -> None:
    one, two, three = (Entering(tmp_path, host) for host in HOSTS[:3])
    assert [one.is_in(), two.is_in()] == [True, True]
    one.window.leave(failed=True)
    three.join(5)
    assert three.blocked_by == ["n1"]
    assert three.window.left() == ["n3", "n4", "n5"]
    two.window.leave(failed=True)
    late = view(tmp_path, "n4")
    assert late.enter() == ["n1", "n2"]
    # That has been told.
    assert late.left() == []


def test_a_machine_of_this_window_that_was_lost_is_a_failure(tmp_path: Path) -> None:
    window.lose(tmp_path, "not-here")
    assert view(tmp_path, "n1").enter() == []
    window.lose(tmp_path, "n1")
    blocked = view(tmp_path, "n2")
    assert blocked.enter() == ["n1"]
    assert blocked.left() == ["n2", "n3", "n4", "n5"]


def test_without_anybody_who_watches_there_is_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "is_watched", False)
    with pytest.raises(UserError, match="kubewright_run is not enabled"):
        window.check()
    monkeypatch.setattr(window, "is_watched", True)
    window.check()


def test_a_larger_window_than_there_are_machines(tmp_path: Path) -> None:
    assert all(view(tmp_path, host, 50).enter() == [] for host in reversed(HOSTS))


def test_nobody_gets_a_place_when_the_run_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runlock.Run(tmp_path / "journal", "ansible-playbook upgrade.yml", 0.0)
    monkeypatch.setattr(runlock, "current", run)
    assert view(tmp_path, "n1", 1).enter() == []
    os.write(run.tell, b"eve@ci\n")
    with pytest.raises(UserError, match="before its turn"):
        view(tmp_path, "n2", 1).enter()
    run.end()


PLAYS = """\
- name: Nodes
  hosts: all
  gather_facts: false
  strategy: host_pinned
  vars:
    failure_ends_run: true
    window: {name: w, hosts: "{{ groups['all'] }}", size: %(size)d}
  tasks:
    - {name: Its turn, kubewright_window: "{{ window | combine({'step': 'enter'}) }}", register: turn}
    - name: Work
      when: not turn.blocked_by
      block:
        - {name: Reached, ansible.builtin.ping: }
        - {name: Begin, ansible.builtin.shell: "echo begin {{ inventory_hostname }} >> %(log)s"}
        - {name: Step, ansible.builtin.command: "{{ work[inventory_hostname] | default('sleep 0.2') }}"}
      rescue:
        - {name: What went wrong, ansible.builtin.set_fact: {failure: it broke}}
    - name: Afterwards
      when: not turn.blocked_by
      block:
        - {name: End, ansible.builtin.shell: "echo end {{ inventory_hostname }} >> %(log)s"}
        - {name: Unforeseen, ansible.builtin.command: "false", when: inventory_hostname == unforeseen}
        - name: The next
          kubewright_window: "{{ window | combine({'step': 'leave', 'failure': failure | default('')}) }}"
- name: Afterwards
  hosts: all
  gather_facts: false
  tasks: [{name: After, ansible.builtin.shell: "echo after {{ inventory_hostname }} >> %(log)s"}]
"""


def command(
    directory: Path, size: int, work: dict[str, str], *options: str, lost: str = "", unforeseen: str = ""
) -> list[str]:
    hosts = {host: {"ansible_connection": "local"} for host in HOSTS}
    if lost:
        hosts[lost] = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": "1"}
    common = {"work": work, "unforeseen": unforeseen, "ansible_python_interpreter": sys.executable}
    (directory / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": common}}))
    (directory / "plays.yml").write_text(PLAYS % {"size": size, "log": directory / "log"})
    (directory / "log").touch()
    return ["ansible-playbook", str(directory / "plays.yml"), "-i", str(directory / "hosts.json"), *options]


def environment() -> dict[str, str]:
    return {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "PYTHONPATH": str(ROOT / "src")}


def run(
    directory: Path, size: int, *options: str, lost: str = "", unforeseen: str = "", **work: str
) -> subprocess.CompletedProcess[str]:
    argv = command(directory, size, work, *options, lost=lost, unforeseen=unforeseen)
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, check=False, timeout=120)
    assert "WARNING" not in done.stdout + done.stderr
    return done


def after(directory: Path, line: str, seconds: float = 0.0) -> str:
    """A command that ends so long after a line has come."""
    seen = f"grep -qx '{line}' {directory / 'log'}"
    return f"""bash -c "for n in $(seq 600); do {seen} && sleep {seconds} && exit 0; sleep 0.1; done; exit 1\""""


def lines(directory: Path) -> list[str]:
    return (directory / "log").read_text().splitlines()


def most_at_once(found: list[str]) -> int:
    inside = most = 0
    for line in found:
        inside += {"begin": 1, "end": -1}.get(line.split()[0], 0)
        most = max(most, inside)
    return most


@pytest.mark.parametrize("forks", ["50", "3"])
def test_a_slow_machine_holds_nobody_up(tmp_path: Path, forks: str) -> None:
    done = run(tmp_path, 2, "--forks", forks, n1=after(tmp_path, "end n5"))
    assert done.returncode == 0
    found = lines(tmp_path)
    assert most_at_once(found) == 2
    # All others had their turns while the first one was busy, and the next play waited for it.
    assert found.index("end n5") < found.index("end n1") < min(found.index(f"after {host}") for host in HOSTS)
    begun = [line.split()[1] for line in found if "begin" in line]
    assert [*sorted(begun[:2]), *begun[2:]] == HOSTS


def test_one_at_a_time(tmp_path: Path) -> None:
    assert run(tmp_path, 1).returncode == 0
    one_by_one = [f"{word} {host}" for host in HOSTS for word in ("begin", "end")]
    assert lines(tmp_path)[: len(one_by_one)] == one_by_one


def test_after_a_failure_nothing_is_begun(tmp_path: Path) -> None:
    done = run(tmp_path, 2, n1=after(tmp_path, "end n2", 5), n2="false")
    assert done.returncode != 0
    # The first one finishes what it has begun.
    assert sorted(lines(tmp_path)) == ["begin n1", "begin n2", "end n1", "end n2"]
    assert "it broke" in done.stdout
    assert done.stdout.count("left as they were, because n2 failed or was lost: n3, n4, n5\n") == 1
    assert "not begun, because Nodes failed: Afterwards" in done.stdout


def test_after_a_machine_is_lost_nothing_is_begun(tmp_path: Path) -> None:
    done = run(tmp_path, 2, lost="n2", n1="sleep 8")
    assert done.returncode != 0
    assert lines(tmp_path) == ["begin n1", "end n1"]
    assert "left as they were, because n2 failed or was lost: n3, n4, n5\n" in done.stdout
    assert "not begun, because Nodes failed: Afterwards" in done.stdout


def test_after_a_failure_that_nothing_rescues_nothing_is_begun(tmp_path: Path) -> None:
    done = run(tmp_path, 1, unforeseen="n1")
    assert done.returncode != 0
    assert lines(tmp_path) == ["begin n1", "end n1"]
    assert "not begun, because Nodes failed: Afterwards" in done.stdout


def processes(directory: Path) -> list[str]:
    """Which processes of a run there are."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_text()
        except OSError:
            continue
        found += [line] if str(directory / "plays.yml") in line else []
    return found


def test_who_waits_ends_with_a_killed_run(tmp_path: Path) -> None:
    with subprocess.Popen(
        command(tmp_path, 1, {"n1": "sleep 2"}), env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 60
        while not lines(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    while processes(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes(tmp_path) == []
    assert lines(tmp_path) == ["begin n1"]

"""A remembered process is never mistaken for another one with the same pid."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kubewright.lab.state import children, is_init, mark_of, read_mark, write_mark


def test_a_mark_survives_being_stored(tmp_path: Path) -> None:
    mark = mark_of(os.getpid())
    write_mark(tmp_path / "deep/state.json", mark)
    assert read_mark(tmp_path / "deep/state.json") == mark
    assert mark.alive()


def test_a_reused_pid_or_another_boot_of_the_host_is_not_the_process() -> None:
    mark = mark_of(os.getpid())
    assert not replace(mark, started=mark.started - 1).alive()
    assert not replace(mark, boot="0").alive()


def test_an_ended_process_is_dead_also_while_it_is_a_zombie() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = mark_of(child.pid)
    assert mark.alive()
    assert child.pid in children(os.getpid())
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not mark.alive()
    child.communicate()
    assert not mark.alive()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": "x", "started": 1, "boot": ""}', "null"])
def test_a_damaged_state_file_counts_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    assert read_mark(path) is None
    assert read_mark(tmp_path / "absent") is None


def test_a_command_name_with_parentheses_does_not_shift_the_fields(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("b\n")
    (tmp_path / "7").mkdir()
    numbers = " ".join(str(number) for number in range(4, 30))
    (tmp_path / "7/stat").write_text(f"7 (a) S 9 (b)) S {numbers}\n")
    assert mark_of(7, tmp_path).started == 22
    assert children(4, tmp_path) == [7]


def test_only_pid_1_of_an_inner_namespace_is_an_init(tmp_path: Path) -> None:
    for pid, line in (("5", "5\t1"), ("6", "6"), ("7", "7\t2"), ("8", "8\t2\t1")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "status").write_text(f"Name:\tx\nNSpid:\t{line}\n")
    assert [pid for pid in (5, 6, 7, 8, 9) if is_init(pid, tmp_path)] == [5]

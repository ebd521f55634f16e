"""The pages on flanneld name what there is: commands, keys, backends, figures, flags that are its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flanneld import options
from flanneld.backend import registry
from flanneld.cli import COMMANDS
from flanneld.metrics import METRICS

ROOT = Path(__file__).resolve().parent.parent.parent
NETWORK, COMMAND, COMPATIBLE = (
    (ROOT / "docs" / f"{name}.md").read_text() for name in ("flannel", "flannel-commands", "flannel-compat")
)


def test_every_command_and_figure_is_described_and_no_other() -> None:
    listed = {
        name for line in COMMAND.splitlines() if line.startswith("| [") for name in re.findall(r"`([\w-]+)", line)
    }
    assert listed == set(COMMANDS)
    figures = re.findall(r"^\| `(flannel_\w+)` \| (\w+) \|", COMMAND, re.MULTILINE)
    assert figures == [(metric.name, metric.kind) for metric in METRICS]


def test_every_backend_has_a_section() -> None:
    section = NETWORK.partition("## What each backend makes on a machine")[2].partition("\n## ")[0]
    assert set(re.findall(r"^### ([\w-]+)$", section, re.MULTILINE)) == set(registry._BACKENDS)


@pytest.mark.parametrize("page", [NETWORK, COMMAND, COMPATIBLE], ids=["flannel", "flannel-commands", "flannel-compat"])
def test_flags_that_are_named_exist(page: str) -> None:
    """Those of the daemon and of its commands, in backticks and in examples that call flanneld."""
    modules = [__import__(one.module, fromlist=["FLAGS"]) for one in COMMANDS.values()]
    known = {flag.name for flag in options.FLAGS}
    known |= {flag.name for module in modules for flag in getattr(module, "FLAGS", ())}
    known.add("help")
    named = set(re.findall(r"`-([a-z][\w-]+)", page))
    for call in re.findall(r"(?:^# |`)flanneld ([^`\n;]*)", page, re.MULTILINE):
        named |= set(re.findall(r"(?:^| )-([a-z][\w-]+)", call))
    assert len(named) > 5
    assert named - known == set()


def test_flags_that_old_versions_had_are_all_named() -> None:
    row = next(line for line in COMPATIBLE.splitlines() if line.startswith("| `-listen`"))
    gone = {flag.name for flag in options.FLAGS if flag.kind == "gone"}
    told = re.findall(r"`-([\w-]+)(\.\.\.)?`", row)
    assert all(any(name == one or (dots and name.startswith(one)) for one, dots in told) for name in gone)
    assert all(any(name == one or (dots and name.startswith(one)) for name in gone) for one, dots in told)

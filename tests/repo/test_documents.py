"""What the documents say about other files: links that lead somewhere, messages and keys that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from kubewright import components
from kubewright.lab.init import OWN_SETTINGS

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Written by others than us.
FOREIGN = {"No first item, sequence was empty"}


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@cache
def texts() -> str:
    """Every text in the source but for docstrings, those of an f-string in pieces."""
    found: list[str] = []
    for directory in ("src", "action_plugins", "callback_plugins", "library"):
        for path in (ROOT / directory).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(path.read_text())))
            said = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
            constants = [node for node in nodes if isinstance(node, ast.Constant) and id(node) not in said]
            found += [node.value for node in constants if isinstance(node.value, str)]
    return "\n".join(found)


def messages(page: str) -> list[str]:
    """What stands in backticks in the first column of tables below the headings `message` and `likely cause`."""
    found: list[str] = []
    inside = False
    for line in (ROOT / page).read_text().splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cell = line.split("|")[1]
        inside |= cell.strip() in {"message", "likely cause", "what flanneld logs"}
        found += re.findall(r"`([^`]+)`", cell) if inside else []
    return found


@pytest.mark.parametrize("page", ["docs/troubleshooting.md", "docs/flannel.md"])
def test_every_message_is_one_of_ours(page: str) -> None:
    listed = messages(page)
    assert len(listed) > 10
    pieces = {piece: message for message in set(listed) - FOREIGN for piece in message.split("...")}
    assert {message: piece for piece, message in pieces.items() if piece not in texts()} == {}


def test_the_keys_of_a_component_are_those_that_exist() -> None:
    text = (ROOT / "docs/components.md").read_text()
    declaration = text.partition("## The declaration")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", declaration, re.MULTILINE)) == components._KEYS


def test_the_example_of_a_component_is_from_its_role() -> None:
    example = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/components.md").read_text(), re.DOTALL)
    assert example
    assert example[1] in (ROOT / "roles/kube_proxy/tasks/main.yml").read_text()


def test_the_settings_that_machines_of_the_lab_have_for_themselves() -> None:
    text = (ROOT / "docs/lab.md").read_text()
    assert set(re.findall(r"`((?:kernel|vm|fs)\.[\w.-]+)`", text)) == {name.replace("/", ".") for name in OWN_SETTINGS}

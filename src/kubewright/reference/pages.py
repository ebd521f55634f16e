"""The generated texts: tables in Markdown, and the files of the example inventory."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import yaml

from kubewright.errors import UserError
from kubewright.reference.roles import Default, Role

BEGIN, END = "<!-- variables: python -m kubewright.reference -->", "<!-- end of variables -->"
EXAMPLE = Path("inventories/example/group_vars/all")
_MARK = "# Made by `python -m kubewright.reference`"
# The role preflight holds what is no single role's own: the cluster.
_FILES = {"preflight": "cluster"}


def example_path(role: Role) -> Path:
    """The role's file in the example inventory."""
    return EXAMPLE / f"{_FILES.get(role.name, role.name)}.yml"


def is_generated(text: str) -> bool:
    """Whether a file of the example inventory is one of ours."""
    return _MARK in text


def splice(page: str, body: str, where: str) -> str:
    """The page with `body` between the two marks; UserError when it has not exactly one pair of them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise UserError(f"{where}: the variables belong between two marks", f"write them once: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{body}\n\n{END}{after}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _shown(entry: Default) -> str:
    """The default as one would write it, in one line."""
    if len(entry.source) == 1:
        return entry.source[0].partition(":")[2].strip()
    return yaml.safe_dump(entry.value, default_flow_style=True, width=1 << 16, sort_keys=False).strip()


def role_table(role: Role) -> str:
    """For the role's README."""
    rows = [f"| `{e.name}` | `{_cell(_shown(e))}` | {_cell(e.comment)} |" for e in role.defaults]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


def _row(role: Role, entry: Default) -> str:
    option = role.options[entry.name]
    kind = f"{option['type']} of {option['elements']}" if "elements" in option else str(option["type"])
    choices = ", ".join(f"`{choice}`" for choice in option.get("choices") or [])
    cells = [f"`{entry.name}`", kind, f"`{_shown(entry)}`", choices, entry.comment]
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _section(role: Role) -> str:
    return "\n".join(
        [
            f"## {role.name}",
            "",
            f"{role.title}. To copy: [{example_path(role).name}](../{example_path(role)}).",
            "",
            "| variable | type | default | choices | meaning |",
            "|---|---|---|---|---|",
            *(_row(role, entry) for entry in role.defaults),
        ]
    )


def reference(roles: Sequence[Role]) -> str:
    """For docs/variables.md: one section per role, the cluster's own variables first."""
    return "\n\n".join(_section(role) for role in sorted(roles, key=lambda role: role.name not in _FILES))


def example(role: Role) -> str:
    """A file of group variables in which everything is a comment: `##` explains, behind `# ` stands the default."""
    lines = ["---", f"# {role.title}.", "#", f"{_MARK} from roles/{role.name}; remove '# ' before what you set."]
    paragraph = None
    for entry in role.defaults:
        if entry.paragraph != paragraph:
            lines.append("")
        paragraph = entry.paragraph
        lines += textwrap.wrap(
            entry.comment, 120, initial_indent="## ", subsequent_indent="## ", break_on_hyphens=False
        )
        choices = [str(choice) for choice in role.options[entry.name].get("choices") or []]
        if any(choice not in entry.comment for choice in choices):
            lines.append(f"## One of {', '.join(choices)}.")
        lines += [f"# {line}".rstrip() for line in entry.source]
    return "\n".join(lines) + "\n"

"""`python -m kubewright.reference [--check]`: writes the reference of all variables, or says what of it is stale."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kubewright.errors import UserError
from kubewright.reference import pages, roles


def wanted(root: Path) -> dict[Path, str | None]:
    """What should be in the repository at `root`: relative path -> text, None for what no role makes any more.

    UserError when defaults and specs contradict each other.
    """
    found = [roles.read(path) for path in sorted((root / "roles").glob("*")) if path.is_dir()]
    if not found:
        raise UserError(f"{root.resolve()} has no roles", "run this in the directory of the repository")
    problems = [problem for role in found for problem in roles.disagreements(role)]
    if problems:
        raise UserError("defaults and specs disagree:\n" + "\n".join(f"  - {problem}" for problem in problems))
    result: dict[Path, str | None] = {}
    for role in found:
        readme = Path("roles") / role.name / "README.md"
        result[readme] = pages.splice((root / readme).read_text(), pages.role_table(role), str(readme))
        result[pages.example_path(role)] = pages.example(role)
    page = Path("docs/variables.md")
    result[page] = pages.splice((root / page).read_text(), pages.reference(found), str(page))
    for path in (root / pages.EXAMPLE).glob("*.yml"):
        if pages.is_generated(path.read_text()):
            result.setdefault(path.relative_to(root), None)
    return result


def stale(root: Path) -> dict[Path, str | None]:
    """The part of `wanted` that the repository has otherwise."""
    return {path: text for path, text in wanted(root).items() if _have(root / path) != text}


def _have(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _write(root: Path, path: Path, text: str | None) -> None:
    if text is None:
        (root / path).unlink()
        return
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Write, or with --check only compare; 1 when something is stale or wrong."""
    parser = argparse.ArgumentParser(prog="python -m kubewright.reference", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 and the names when something is stale")
    arguments = parser.parse_args(argv)
    root = Path()
    try:
        found = stale(root)
        if not arguments.check:
            for path, text in found.items():
                _write(root, path, text)
    except (UserError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for path in found:
        print(f"{path}: {'stale' if arguments.check else 'written'}")
    if arguments.check and found:
        print("run python -m kubewright.reference")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

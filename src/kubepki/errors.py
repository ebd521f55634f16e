"""The errors of kubepki: each is something that a user can mend."""

from __future__ import annotations

from collections.abc import Sequence


class KubepkiError(Exception):
    """A sentence that says what is wrong, with the value seen, and a hint."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class SpecError(KubepkiError):
    """The specification is wrong; `problems` are all that was found, and the message lists them."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("the PKI specification is wrong:\n" + "\n".join(f"  - {problem}" for problem in problems))
        self.problems = tuple(problems)


class StoreError(KubepkiError):
    """The PKI directory holds something that must not be overwritten, or cannot be written."""

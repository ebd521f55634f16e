"""The errors of kubepki: each is something that a user can mend.

Codes are cfssl's (`errors/error.go`): thousands name the category (1 certificate, 2 private key, 5 policy, 9 request),
hundreds and units the reason, as in read (1), decode (2) and parse (3).
"""

from __future__ import annotations

from collections.abc import Sequence


class KubepkiError(Exception):
    """A sentence that says what is wrong, with the value seen, and a hint; `code` is a number of cfssl's."""

    code = 1000

    def __init__(self, message: str, hint: str = "", code: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.code

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class FlagError(KubepkiError):
    """The command line is wrong."""


class CertificateError(KubepkiError):
    """A certificate cannot be read, or is not fit for what it is used for."""


class PrivateKeyError(KubepkiError):
    """A key cannot be read, made or used."""

    code = 2000


class PolicyError(KubepkiError):
    """A signing configuration, or what it does not allow."""

    code = 5200


class RequestError(KubepkiError):
    """A request for a certificate: the JSON of it, or a CSR."""

    code = 9003


class StoreError(KubepkiError):
    """A file or directory holds something that must not be overwritten, or cannot be read or written."""


class SpecError(KubepkiError):
    """The specification is wrong; `problems` are all that was found, and the message lists them."""

    code = 5200

    def __init__(self, problems: Sequence[str], where: str = "") -> None:
        called = f"the PKI specification {where}".rstrip()
        super().__init__(f"{called} is wrong:\n" + "\n".join(f"  - {problem}" for problem in problems))
        self.problems = tuple(problems)


class RotationError(KubepkiError):
    """A step of a CA's rotation that must not be taken yet; `waiting` are the consumers that hold it up."""

    def __init__(self, message: str, hint: str = "", waiting: Sequence[str] = ()) -> None:
        super().__init__(message, hint)
        self.waiting = tuple(waiting)

"""The errors of kubepki: each is something that a user can mend."""


class KubepkiError(Exception):
    """A sentence that says what is wrong, with the value seen, and a hint."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class SpecError(KubepkiError):
    """The specification is wrong; the message lists everything found."""


class StoreError(KubepkiError):
    """The PKI directory holds something that must not be overwritten, or cannot be written."""

"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something a user can mend: a sentence that says what is wrong, with the value seen, and a hint.

    Anything else that escapes is a bug and keeps its traceback.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message

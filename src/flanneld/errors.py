"""Errors that a user is meant to read: one sentence, and a hint where there is something to do."""

from __future__ import annotations


class FlanneldError(Exception):
    """A failure with a known cause: `message` says what is wrong and shows the value, `hint` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(FlanneldError):
    """A flag or an environment variable is unknown, malformed or not implemented."""


class ConfigError(FlanneldError):
    """The network configuration in etcd is absent or wrong."""


class NetworkError(FlanneldError):
    """The kernel refused something, or an interface that is needed is not there."""


class RulesError(FlanneldError):
    """iptables is missing or refused the rules."""


class LeaseError(FlanneldError):
    """No subnet could be leased, or the leased one was lost to another machine."""


class EtcdError(FlanneldError):
    """etcd answered with an error; `code` is the gRPC status code (0 where there is none)."""

    def __init__(self, message: str, hint: str = "", code: int = 0) -> None:
        super().__init__(message, hint)
        self.code = code


class EtcdUnavailableError(EtcdError):
    """No endpoint of etcd could be asked: refused, timed out, no leader."""


class CompactedError(EtcdError):
    """The revision a watch wanted to resume from was compacted away; a full read is needed."""

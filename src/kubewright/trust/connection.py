"""SSH connections by paramiko: the only door of this package to the network, and to programs that carry connections."""

from __future__ import annotations

import base64
import logging
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import paramiko

from kubewright.errors import UserError
from kubewright.trust.known_hosts import HostKey
from kubewright.trust.target import Settings, Target, parse, question

# Without a handler, what paramiko's threads think of a bad connection would go to the terminal; results say it better.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False

# RFC 8332: an RSA key signs by algorithms of other names.
_ALGORITHMS = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}

# Bytes of a command's output; an authorized_keys file of thousands of keys is shorter.
_MOST_OUTPUT = 4 << 20


@dataclass(frozen=True)
class Key:
    """A private key that may be tried; `label` is what people call it, `base64` its public half."""

    label: str
    private: paramiko.PKey

    @property
    def base64(self) -> str:
        """The public half, as in a `.pub` file."""
        return self.private.get_base64()


@dataclass(frozen=True)
class Reply:
    """What a command on a machine left: exit status (-1: none), output, and its last words on stderr."""

    status: int
    output: str
    words: str


def ask_openssh(settings: Settings, home: Path) -> Target:
    """Let OpenSSH say how it would connect to a host."""
    try:
        done = subprocess.run(question(settings), capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        raise UserError("the program ssh is missing on the controller", "install openssh-client") from None
    except subprocess.TimeoutExpired:
        raise UserError("`ssh -G` did not end within 10 s", "look at the Match exec lines of ssh_config") from None
    if done.returncode or "hostname " not in done.stdout:
        raise UserError(
            f"OpenSSH does not accept this host's settings: {_last_line(done.stderr) or 'silently'}",
            "mend ansible_host, ansible_user or ansible_ssh_common_args, or ssh_config",
        )
    return parse(settings, done.stdout, home)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # It may come from anybody, and goes to a terminal.
    return "".join(character for character in lines[-1] if character.isprintable()) if lines else ""


@contextmanager
def keys(target: Target) -> Iterator[tuple[list[Key], list[str]]]:
    """The private keys that OpenSSH would try, and remarks about files that cannot be read.

    Those of an agent can be used within the context only: it signs with them itself.
    """
    agent = _agent()
    try:
        yield _choose(target, _held(agent))
    finally:
        if agent:
            agent.close()


def _choose(target: Target, held: list[Key]) -> tuple[list[Key], list[str]]:
    found: dict[str, Key] = {}
    remarks = []
    locked: list[Path] = []
    for path in target.identities:
        try:
            private = paramiko.PKey.from_path(path)
        except FileNotFoundError:
            if target.settings.private_key:
                remarks.append(f"the private key {path} does not exist")
        except (paramiko.PasswordRequiredException, TypeError):
            locked.append(path)
        except (paramiko.SSHException, paramiko.pkey.UnknownKeyType, ValueError, OSError) as error:
            remarks.append(f"the private key {path} cannot be read: {_last_line(str(error)) or type(error).__name__}")
        else:
            found.setdefault(private.get_base64(), Key(path.name, private))
    wanted = {words[1] for path in locked if len(words := _public_half(path).split()) > 1}
    for offered in held:
        if not target.only_identities or offered.base64 in wanted:
            found.setdefault(offered.base64, offered)
    missing = [path for path in locked if not wanted & {offered.base64 for offered in held}]
    remarks += [f"the private key {path} has a passphrase: load it with ssh-add" for path in missing]
    return list(found.values()), remarks


def _public_half(path: Path) -> str:
    try:
        return path.with_name(path.name + ".pub").read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _agent() -> paramiko.Agent | None:
    try:
        return paramiko.Agent()
    except (paramiko.SSHException, OSError):
        return None


def _held(agent: paramiko.Agent | None) -> list[Key]:
    offered = agent.get_keys() if agent else ()
    return [Key(f"agent: {key.comment or key.get_name()}", key) for key in offered]


class Connection:
    """An open SSH connection whose host key is known but not yet judged; a context manager."""

    def __init__(self, target: Target, timeout: float, kinds: Sequence[str] = ()) -> None:
        """Connect. `kinds`: key types to ask for first; `timeout` seconds for each step. `UserError` says why not."""
        self._target = target
        self._timeout = timeout
        self._program: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        sock = self._through(target.proxy) if target.proxy else self._direct()
        try:
            self._transport = self._negotiate(sock, kinds)
        except BaseException:
            self._stop_program()
            raise
        key = self._transport.get_remote_server_key()
        self.host_key = HostKey(key.get_name(), base64.b64encode(key.asbytes()).decode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up, and end the program that carried the connection."""
        self._transport.close()
        self._stop_program()

    def _direct(self) -> socket.socket:
        name, port = self._target.hostname, self._target.port
        try:
            return socket.create_connection((name, port), self._timeout)
        except socket.gaierror as error:
            raise UserError(
                f"the name {name} does not resolve: {error.strerror}", "set ansible_host to the machine's address"
            ) from None
        except TimeoutError:
            raise UserError(
                f"{name} port {port} does not answer within {self._timeout:g} s",
                "is the machine on, the address right, and no firewall between?",
            ) from None
        except ConnectionRefusedError:
            raise UserError(
                f"{name} refuses connections to port {port}", "is sshd running there? Another port is ansible_port"
            ) from None
        except OSError as error:
            raise UserError(
                f"{name} port {port}: {error.strerror or error}", "look at the address and routes"
            ) from None

    def _through(self, command: str) -> socket.socket:
        # A pair of sockets, as in OpenSSH: the end of the program is the end of the connection, at once.
        ours, theirs = socket.socketpair()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 -- lives as long as the connection
        with theirs:
            self._program = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {command}"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._said,
                start_new_session=True,
            )
        return ours

    def _stop_program(self) -> None:
        if self._program:
            try:
                os.killpg(self._program.pid, signal.SIGTERM)
                self._program.wait(2)
            except ProcessLookupError:
                pass
            except subprocess.TimeoutExpired:
                os.killpg(self._program.pid, signal.SIGKILL)
            self._program.wait()
            self._program = None
        if self._said:
            self._said.close()
            self._said = None

    def _program_words(self) -> str:
        if not self._said:
            return ""
        self._said.seek(0)
        return _last_line(self._said.read().decode(errors="replace"))

    def _negotiate(self, sock: socket.socket, kinds: Sequence[str]) -> paramiko.Transport:
        transport = paramiko.Transport(sock)
        transport.daemon = True
        transport.banner_timeout = self._timeout
        transport.handshake_timeout = self._timeout
        transport.auth_timeout = self._timeout
        options = transport.get_security_options()
        first = [name for kind in kinds for name in _ALGORITHMS.get(kind, (kind,)) if name in options.key_types]
        options.key_types = tuple(dict.fromkeys([*first, *options.key_types]))
        begin = time.monotonic()
        failure = ""
        try:
            transport.start_client(timeout=2 * self._timeout)
        except (paramiko.SSHException, OSError, EOFError) as error:
            failure = str(error) or type(error).__name__
        if failure or not transport.initial_kex_done:
            waited = time.monotonic() - begin
            transport.close()
            raise self._no_ssh(transport, failure or "the key exchange does not end", waited)
        return transport

    def _no_ssh(self, transport: paramiko.Transport, failure: str, waited: float) -> UserError:
        where = f"{self._target.hostname} port {self._target.port}"
        if self._target.proxy and not transport.remote_version:
            says = self._program_words() or f"nothing came back within {waited:.0f} s"
            return UserError(
                f"no connection to {where} through `{self._target.proxy}`: {says}",
                "try that command by hand, and log in to the jump host once so that its host key is known",
            )
        if not transport.remote_version:
            what = "says nothing" if waited >= self._timeout * 0.9 else "closes the connection or speaks no SSH"
            return UserError(
                f"{where} accepts connections but {what}",
                "is that sshd's port? A full sshd (MaxStartups) and a firewall behave like this too",
            )
        return UserError(
            f"{where} and this controller agree on no SSH algorithms or fail at it: {_last_line(failure)}",
            "compare with: ssh -vv",
        )

    @property
    def is_open(self) -> bool:
        """Whether the server has not hung up, as it does after a number of failed attempts."""
        return self._transport.is_active()

    def methods(self) -> list[str]:
        """What the server would accept: publickey, password, keyboard-interactive; empty when nothing is needed."""
        try:
            self._transport.auth_none(self._target.user)
        except paramiko.BadAuthenticationType as error:
            return list(error.allowed_types)
        except (paramiko.SSHException, EOFError, OSError):
            return ["publickey", "password"]
        return []

    @property
    def is_authenticated(self) -> bool:
        """Whether the server has let us in."""
        return self._transport.is_authenticated()

    def try_key(self, key: Key) -> bool:
        """Whether the server takes a key (it may want a password besides: look at `is_authenticated`)."""
        try:
            self._transport.auth_publickey(self._target.user, key.private)
        except (paramiko.SSHException, EOFError, OSError):
            return False
        return True

    def try_password(self, password: str) -> bool:
        """Log in by password, asked for directly or by keyboard-interactive."""
        try:
            self._transport.auth_password(self._target.user, password)
        except (paramiko.SSHException, EOFError, OSError):
            return False
        return self._transport.is_authenticated()

    def run(self, command: str, stdin: str = "") -> Reply:
        """Run a command; `UserError` when the machine runs none or it does not end in time."""
        deadline = time.monotonic() + self._timeout
        try:
            with self._channel() as channel:
                channel.exec_command(command)
                channel.sendall(stdin.encode(errors="surrogateescape"))
                channel.shutdown_write()
                output = self._drain(channel, channel.recv, deadline)
                words = self._drain(channel, channel.recv_stderr, deadline)
                ended = channel.status_event.wait(max(0.0, deadline - time.monotonic()))
                status = channel.recv_exit_status() if ended else -1
        except TimeoutError:
            raise self._no_command(f"did not end within {self._timeout:g} s") from None
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._no_command(f"broke off: {_last_line(str(error)) or type(error).__name__}") from None
        text, last = output.decode(errors="surrogateescape"), _last_line(words.decode(errors="replace"))
        return Reply(status, text, last)

    def _drain(self, channel: paramiko.Channel, receive: Callable[[int], bytes], deadline: float) -> bytes:
        found = bytearray()
        while len(found) <= _MOST_OUTPUT:
            channel.settimeout(max(0.001, deadline - time.monotonic()))
            data = receive(1 << 16)
            if not data:
                return bytes(found)
            found += data
            if time.monotonic() > deadline:
                raise TimeoutError
        raise self._no_command("says more than anybody asked")

    def _no_command(self, why: str) -> UserError:
        return UserError(
            f"logged in as {self._target.user}, but a command {why}",
            "a slow machine needs a larger trust_timeout; otherwise log in by hand and see",
        )

    @contextmanager
    def _channel(self) -> Iterator[paramiko.Channel]:
        channel = self._transport.open_session(timeout=self._timeout)
        try:
            channel.settimeout(self._timeout)
            yield channel
        finally:
            channel.close()

"""Machines to meet: SSH servers (paramiko's) on the loopback, with a home and programs of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import paramiko

# What the survey needs; no python3 and no sudo, unless a machine has them.
TOOLS = ("sh", "uname", "cat", "stat", "mkdir", "chmod", "mv", "rm", "readlink", "true", "sleep")
SUDO = """#!/bin/sh
for flag; do case $flag in -n) ask=no;; -S) ask=yes;; esac; done
case {mode} in
  nopasswd) exit 0;;
  password) [ "$ask" = yes ] && read -r given && [ "$given" = "{password}" ] && exit 0;;
esac
echo "sudo: a password is required" >&2
exit 1
"""


def key_pair(path: Path, *, passphrase: str = "", kind: str = "ed25519") -> str:
    """Make a key pair by ssh-keygen; the public line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bits = ["-b", "2048"] if kind == "rsa" else []
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, *bits, "-N", passphrase, "-C", f"key {path.name}", "-f", str(path)], check=True
    )
    return path.with_name(path.name + ".pub").read_text()


@dataclass
class Machine:
    """`directory` holds home, programs and host key; `address` and `port` are set once it listens.

    `uid`: who the login user is there. `sudo`: none, nopasswd, password or refuses. `host_keys`: their types.
    `methods` as the server names them; `both`: a key is not enough, a password is wanted besides.
    `reads_keys`: whether the server looks into authorized_keys. `forced`: what it runs instead of any command.
    """

    directory: Path
    user: str = "root"
    password: str = "let me in"
    uid: int = 0
    sudo: str = ""
    python: str = "3.11.99"
    methods: str = "publickey,password"
    both: bool = False
    reads_keys: bool = True
    forced: str = ""
    host_keys: tuple[str, ...] = ("ed25519",)
    address: str = "127.0.0.1"
    port: int = 0
    logins: list[str] = field(default_factory=list)
    passwords: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.directory / "home"

    @property
    def authorized_keys(self) -> Path:
        return self.home / ".ssh" / "authorized_keys"

    def host_key(self, kind: str = "ed25519") -> Path:
        return self.directory / f"host_{kind}"

    def make(self) -> None:
        """Home, programs, host keys; again after a change of the fields above."""
        programs = self.directory / "bin"
        shutil.rmtree(programs, ignore_errors=True)
        programs.mkdir(parents=True)
        self.home.mkdir(exist_ok=True)
        for name in TOOLS:
            found = shutil.which(name)
            assert found, name
            (programs / name).symlink_to(found)
        scripts = {"id": f'#!/bin/sh\n[ "$1" = -u ] && echo {self.uid} || echo {self.user}\n'}
        if self.python:
            scripts["python3"] = f"#!/bin/sh\necho {self.python}\n"
        if self.sudo:
            scripts["sudo"] = SUDO.format(mode=self.sudo, password=self.password)
        for name, text in scripts.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        for kind in self.host_keys:
            if not self.host_key(kind).exists():
                key_pair(self.host_key(kind), kind=kind)

    def new_host_key(self) -> None:
        """As after an installation anew."""
        for kind in self.host_keys:
            self.host_key(kind).unlink()
            key_pair(self.host_key(kind), kind=kind)

    def let_in(self, public: str) -> None:
        self.authorized_keys.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.authorized_keys.write_text(public)
        self.authorized_keys.chmod(0o600)


class _Server(paramiko.ServerInterface):
    def __init__(self, machine: Machine, transport: paramiko.Transport) -> None:
        self._machine = machine
        self._transport = transport
        self._by_key = False

    def get_allowed_auths(self, username: str) -> str:
        return self._machine.methods if username else ""

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        keys = self._machine.authorized_keys
        text = keys.read_text(errors="replace") if keys.exists() and self._machine.reads_keys else ""
        if username != self._machine.user or key.get_base64() not in text.split():
            return paramiko.AUTH_FAILED
        self._machine.logins.append("publickey")
        self._by_key = True
        return paramiko.AUTH_PARTIALLY_SUCCESSFUL if self._machine.both else paramiko.AUTH_SUCCESSFUL

    def check_auth_password(self, username: str, password: str) -> int:
        self._machine.passwords.append(password)
        if (username, password) != (self._machine.user, self._machine.password):
            return paramiko.AUTH_FAILED
        if self._machine.both and not self._by_key:
            return paramiko.AUTH_FAILED
        self._machine.logins.append("password")
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        del chanid
        return paramiko.OPEN_SUCCEEDED if kind == "session" else paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self._machine.commands.append(command.decode())
        threading.Thread(target=self._run, args=(channel, command.decode()), daemon=True).start()
        return True

    def _run(self, channel: paramiko.Channel, command: str) -> None:
        environment = {"HOME": str(self._machine.home), "PATH": str(self._machine.directory / "bin")}
        with suppress(OSError, EOFError):
            pipe = subprocess.PIPE
            program = ["/bin/sh", "-c", self._machine.forced or command]
            with subprocess.Popen(
                program, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, start_new_session=True
            ) as process:
                try:
                    _carry(process, channel)
                finally:
                    # As sshd does when the connection has gone.
                    if process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)
            channel.close()

    def check_channel_direct_tcpip_request(self, chanid: int, origin: object, destination: tuple[str, int]) -> int:
        del origin
        self._machine.commands.append(f"forward to {destination[0]}:{destination[1]}")
        threading.Thread(target=self._forward, args=(chanid, destination), daemon=True).start()
        return paramiko.OPEN_SUCCEEDED

    def _forward(self, chanid: int, destination: tuple[str, int]) -> None:
        channel = self._transport.accept(5)
        assert channel is not None
        assert channel.get_id() == chanid
        with suppress(OSError, EOFError), socket.create_connection(destination, 5) as far, channel:
            back = threading.Thread(target=_pump, args=(far.recv, channel.sendall), daemon=True)
            back.start()
            _pump(channel.recv, far.sendall)
            with suppress(OSError):
                far.shutdown(socket.SHUT_RDWR)
            back.join(5)


def _carry(process: subprocess.Popen[bytes], channel: paramiko.Channel) -> None:
    assert process.stdin
    assert process.stdout
    assert process.stderr
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(channel.makefile("rb").read())
    while data := os.read(process.stdout.fileno(), 65536):
        channel.sendall(data)
    channel.sendall_stderr(process.stderr.read())
    channel.send_exit_status(process.wait())


def _pump(receive: object, send: object) -> None:
    assert callable(receive)
    assert callable(send)
    with suppress(OSError, EOFError):
        while data := receive(65536):
            send(data)


def _serve(machine: Machine, client: socket.socket) -> None:
    transport = paramiko.Transport(client)
    for kind in machine.host_keys:
        transport.add_server_key(paramiko.PKey.from_path(machine.host_key(kind)))
    with suppress(paramiko.SSHException, EOFError, OSError):
        transport.start_server(event=threading.Event(), server=_Server(machine, transport))


@contextmanager
def listening(machine: Machine) -> Iterator[Machine]:
    """The machine's SSH server, on a port that stays its own once it has one."""
    machine.make()
    with socket.create_server((machine.address, machine.port), backlog=64) as listener:
        machine.port = listener.getsockname()[1]
        clients: list[socket.socket] = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    clients.append(client)
                    _serve(machine, client)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield machine
        finally:
            # accept() in another thread is woken by shutdown, not by close.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for client in clients:
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)
                client.close()


def clean_environment() -> dict[str, str]:
    """Without the agent of whoever runs the tests."""
    return {name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"}

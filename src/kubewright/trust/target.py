"""How Ansible would reach a host, as OpenSSH itself reads the same settings (`ssh -G`). Pure.

So trust is established with exactly the name, port, user, keys, jump hosts and known_hosts that runs use afterwards,
and there is no second interpretation of ssh_config(5).
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from kubewright.errors import UserError
from kubewright.trust.known_hosts import host_name


@dataclass(frozen=True)
class Settings:
    """What the inventory says about a host; empty means that it says nothing. Paths are on the controller.

    `first_arguments` and `arguments`: for ssh, as a shell would split them, before and behind what Ansible makes of the
    other settings; for ssh the first mention counts. `pythons`: interpreters in the order in which Ansible tries them.
    """

    host: str
    address: str
    inventory: Path
    port: int | None = None
    user: str = ""
    first_arguments: str = ""
    arguments: str = ""
    private_key: str = ""
    password: str = field(default="", repr=False)
    become: bool = False
    become_password: str = field(default="", repr=False)
    pythons: tuple[str, ...] = ("python3",)

    @property
    def known_hosts(self) -> Path:
        """The file beside the inventory."""
        return self.inventory / "known_hosts"


@dataclass(frozen=True)
class Target:
    """Where and how to connect. `proxy`: a shell command that carries the connection, empty when there is none.

    `own`: the known_hosts file of this inventory, `elsewhere`: those that the operator has besides. `uses_own` tells
    whether Ansible's runs are set to look into `own`.
    """

    settings: Settings
    hostname: str
    port: int
    user: str
    proxy: str
    known_as: str
    own: Path
    elsewhere: tuple[Path, ...]
    identities: tuple[Path, ...]
    only_identities: bool
    uses_own: bool

    @property
    def login(self) -> str:
        """For people: user@address, with the port unless it is 22."""
        return f"{self.user}@{host_name(self.hostname, self.port)}"


def split(arguments: str) -> list[str]:
    """Arguments as Ansible splits them; a `UserError` when a quote is open."""
    try:
        return shlex.split(arguments)
    except ValueError as error:
        raise UserError(
            f"the SSH arguments {arguments!r} cannot be split: {error}", "mend the quotes in ansible_ssh_common_args"
        ) from None


def question(settings: Settings) -> list[str]:
    """The command that makes OpenSSH say how it would connect."""
    command = ["ssh", "-G", *split(settings.first_arguments)]
    if settings.port:
        command += ["-o", f"Port={settings.port}"]
    if settings.user:
        command += ["-o", f'User="{settings.user}"']
    if settings.private_key:
        command += ["-o", f'IdentityFile="{settings.private_key}"']
    return [*command, *split(settings.arguments), "--", settings.address]


def parse(settings: Settings, answer: str, home: Path) -> Target:
    """Read the answer of `ssh -G`. `home`: the operator's home directory as the passwd database has it."""
    values: dict[str, list[str]] = {}
    for line in answer.splitlines():
        name, _, value = line.partition(" ")
        values.setdefault(name, []).append(value)

    def one(name: str, default: str = "") -> str:
        return values.get(name, [default])[0]

    hostname, port, user = one("hostname", settings.address), int(one("port", "22")), one("user", settings.user)
    operators = home / ".ssh" / "known_hosts"
    named = _named_file(one("userknownhostsfile"), operators)
    own = named or settings.known_hosts
    others = (operators, *(Path(name) for name in _files(one("globalknownhostsfile"))))
    return Target(
        settings=settings,
        hostname=hostname,
        port=port,
        user=user,
        proxy=expand(
            _proxy(one("proxycommand"), one("proxyjump"), settings),
            {"h": hostname, "p": str(port), "r": user, "n": settings.address},
        ),
        known_as=one("hostkeyalias").lower() or host_name(hostname, port),
        own=own,
        elsewhere=tuple(path for path in others if path != own),
        identities=tuple(home_path(name, home) for name in values.get("identityfile", [])),
        only_identities=one("identitiesonly") == "yes",
        uses_own=named is not None,
    )


def home_path(name: str, home: Path) -> Path:
    """A path of ssh_config, with `~` and the tokens `%d` and `%%`."""
    name = expand(name, {"d": str(home)}, keep_unknown=True)
    return home / name[2:] if name.startswith("~/") else Path(name)


def _files(value: str) -> list[str]:
    # ssh prints several names with spaces between, and spaces within a name just the same; all are absolute.
    return re.split(r" (?=/)", value) if value else []


def _named_file(value: str, default: Path) -> Path | None:
    """The known_hosts file that the inventory or ssh_config names; None when it names none that could remember."""
    first = next(iter(_files(value)), "none")
    return None if first in (str(default), "/dev/null", "none") else Path(first)


def _proxy(command: str, jump: str, settings: Settings) -> str:
    if command and command != "none":
        return command
    if not jump or jump == "none":
        return ""
    # What ssh itself makes of ProxyJump; but it must not ask anything: nobody could see the question.
    *before, last = jump.split(",")
    words = ["ssh", "-o", "BatchMode=yes"]
    arguments = [*split(settings.first_arguments), *split(settings.arguments)]
    for index, word in enumerate(arguments):
        if word.startswith("-F"):
            words += ["-F", word[2:] or arguments[index + 1]]
    if before:
        words += ["-J", ",".join(before)]
    destination = last if last.startswith("ssh://") else f"ssh://{last}"
    return " ".join(shlex.quote(word).replace("%", "%%") for word in words) + f" -W '[%h]:%p' {destination}"


def expand(text: str, tokens: dict[str, str], *, keep_unknown: bool = False) -> str:
    """Replace the percent tokens of ssh_config(5); a `UserError` for one that is not in `tokens`."""

    def value(match: re.Match[str]) -> str:
        letter = match.group(1)
        if letter == "%":
            return "%"
        if letter not in tokens and keep_unknown:
            return match.group(0)
        if letter not in tokens:
            raise UserError(
                f"the token %{letter} in {text!r} is not understood here",
                "in a ProxyCommand use %h (host), %p (port), %r (user) and %n (name) only",
            )
        return tokens[letter]

    return re.sub(r"%(.)", value, text)


def public_key_files(private_key: str, home: Path) -> list[Path]:
    """Where the operator's public key may lie, the most wanted first."""
    if private_key:
        return [home_path(f"{private_key}.pub", home)]
    return [home / ".ssh" / f"{name}.pub" for name in ("id_ed25519", "id_ecdsa", "id_rsa")]

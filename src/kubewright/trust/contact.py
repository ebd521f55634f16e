"""First contact with one machine, and with many at once: what was found, what was changed, what failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from kubewright.errors import UserError
from kubewright.preflight import OLDEST_PYTHON
from kubewright.trust import authorized_keys, known_hosts, survey
from kubewright.trust.authorized_keys import PublicKey
from kubewright.trust.connection import Connection, Key, ask_openssh, keys
from kubewright.trust.known_hosts import HostKey, Verdict
from kubewright.trust.target import Settings, Target, public_key_files

_WORKERS = 32


@dataclass(frozen=True)
class Plan:
    """What holds for all hosts. `public_key`: a path, empty for the operator's default; `timeout` seconds per step.

    `home`: the operator's home directory as the passwd database has it, where OpenSSH looks too.
    """

    home: Path
    public_key: str = ""
    timeout: float = 10.0
    check: bool = False


@dataclass
class Contact:
    """What came of one host; empty text means that it was not got so far. Filled in from top to bottom."""

    host: str
    login: str = ""
    target: Target | None = None
    reachable: bool = False
    host_key: HostKey | None = None
    verdict: Verdict | None = None
    means: str = ""
    wants_password: bool = False
    key: str = ""
    root: str = ""
    machine: survey.Survey | None = None
    changed: bool = False
    unrecorded: bool = False
    problems: list[UserError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def records(self) -> bool:
        """Whether its host key has to be added to the known_hosts file of the inventory."""
        return self.verdict is not None and self.verdict.state == "new"


def meet_all(hosts: Sequence[Settings], plan: Plan, seen: Sequence[Contact] = ()) -> list[Contact]:
    """Meet hosts in parallel, in their order. `seen`: an earlier round, whose host keys must be the same still."""
    before = {contact.host: contact.host_key for contact in seen}
    with ThreadPoolExecutor(min(_WORKERS, max(1, len(hosts)))) as pool:
        return list(pool.map(lambda settings: meet(settings, plan, before.get(settings.host)), hosts))


def meet(settings: Settings, plan: Plan, seen: HostKey | None = None) -> Contact:
    """Do with one host as much as can be done; what cannot is in `problems`."""
    contact = Contact(settings.host, login=settings.address)
    try:
        _Meeting(contact, plan, seen).go(settings)
    except UserError as error:
        contact.problems.append(error)
    return contact


def record(contacts: Sequence[Contact], write: Callable[[Path, str], None]) -> list[Path]:
    """Add the new host keys to their known_hosts files; return the files that changed. What fails is in `problems`."""
    files: dict[Path, list[Contact]] = {}
    for contact in contacts:
        if contact.records and contact.target:
            files.setdefault(contact.target.own, []).append(contact)
    changed = []
    for path, new in files.items():
        lines = [known_hosts.line(c.target.known_as, c.host_key) for c in new if c.target and c.host_key]
        try:
            text = _read(path)
            wanted = known_hosts.extended(text, lines)
            if wanted != text:
                # A link stays one.
                write(path.resolve(), wanted)
                changed.append(path)
        except OSError as error:
            for contact in new:
                contact.unrecorded = True
                contact.problems.append(
                    UserError(f"its host key cannot be recorded in {path}: {error.strerror}", "mend its mode or place")
                )
    return changed


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}", "mend the file or its mode, or remove it") from None


class _Meeting:
    """The steps with one host, each of which needs the one before."""

    def __init__(self, contact: Contact, plan: Plan, seen: HostKey | None) -> None:
        self._contact = contact
        self._plan = plan
        self._seen = seen
        self._used: Key | None = None

    def go(self, settings: Settings) -> None:
        """All steps; a `UserError` ends them."""
        target = self._target = ask_openssh(settings, self._plan.home)
        self._contact.target, self._contact.login = target, target.login
        self._own = known_hosts.entries(_read(target.own), target.known_as, target.own)
        self._elsewhere = [
            entry for path in target.elsewhere for entry in known_hosts.entries(_read(path), target.known_as, path)
        ]
        with keys(target) as (self._keys, self._remarks):
            self._connection = self._connect()
            try:
                self._log_in()
                machine = self._survey()
                self._root(machine)
                self._python(machine)
                self._hand_over(machine)
            finally:
                self._connection.close()

    def _connect(self) -> Connection:
        """Connect, and go no further unless the host key is what it has to be: nothing is said to a stranger."""
        connection = Connection(self._target, self._plan.timeout, known_hosts.kinds(self._own or self._elsewhere))
        key, before, contact = connection.host_key, self._seen, self._contact
        contact.reachable = True
        verdict = known_hosts.judge(key, self._own, self._elsewhere)
        refusal = None
        if before and key != before:
            refusal = _strangers(self._target, before, key)
        elif verdict.state in ("changed", "revoked"):
            refusal = _refused(self._target, key, verdict)
        self._seen, contact.host_key, contact.verdict = before or key, key, verdict
        if refusal:
            connection.close()
            raise refusal
        return connection

    def _stay_connected(self) -> Connection:
        # sshd hangs up after a number of failed attempts (MaxAuthTries); what is left deserves its try as well.
        if not self._connection.is_open:
            self._connection.close()
            self._connection = self._connect()
        return self._connection

    def _log_in(self) -> None:
        contact, password = self._contact, self._target.settings.password
        methods = self._connection.methods()
        if self._connection.is_authenticated:
            contact.means = "nothing asked"
            return
        if "publickey" in methods:
            self._used = next((key for key in self._keys if self._stay_connected().try_key(key)), None)
        by_key = f"key {self._used.label}" if self._used else ""
        if self._connection.is_authenticated:
            contact.means = by_key
            return
        takes_password = bool(by_key) or not {"password", "keyboard-interactive"}.isdisjoint(methods)
        if password and takes_password and self._stay_connected().try_password(password):
            contact.means = f"{by_key} and password" if by_key else "password"
            return
        contact.wants_password = takes_password and not password
        raise self._not_let_in(takes_password=takes_password)

    def _not_let_in(self, *, takes_password: bool) -> UserError:
        user = self._target.user
        tried = ", ".join(key.label for key in self._keys)
        known = [f"{user} is let in by no key of this controller (tried: {tried or 'there are none'})", *self._remarks]
        if not takes_password:
            return UserError(
                f"{'; '.join(known)}, and sshd there takes keys only",
                "put the public key there from a console (~/.ssh/authorized_keys), or name the private key that is let "
                "in with ansible_ssh_private_key_file",
            )
        if self._target.settings.password:
            return UserError(
                f"the password is refused for {user}; {'; '.join(known)}",
                "is the password right, is ansible_user, and does sshd let that user in by password (root: "
                "PermitRootLogin yes)?",
            )
        return UserError(
            f"{'; '.join(known)}, and no password is given",
            "run in a terminal and type it, or give trust_password from a vault or a file: -e @FILE",
        )

    def _survey(self) -> survey.Survey:
        reply = self._connection.run(survey.command(survey.script(self._target.settings.pythons)))
        found = survey.read(reply.output, reply.status, reply.words)
        if found is None:
            words = reply.words or next(iter(reply.output.split("\n")), "")
            raise UserError(
                f"{self._target.user} is let in, but gets no shell there: {words or 'it answers nothing'}",
                "an expired password, a forced command or nologin? Log in by hand once and see",
            )
        self._contact.machine = found
        return found

    def _root(self, machine: survey.Survey) -> None:
        contact, settings = self._contact, self._target.settings
        if machine.uid == 0:
            contact.root = "root"
            return
        contact.root = "no"
        if machine.sudo == "absent":
            contact.problems.append(
                UserError(
                    f"{machine.user} is not root, and there is no sudo",
                    "set ansible_user: root, or install sudo there and let the user use it",
                )
            )
            return
        if machine.sudo == "yes":
            contact.root = "sudo"
        else:
            password = settings.become_password or settings.password
            reply = self._connection.run('sudo -S -k -p "" true', f"{password}\n") if password else None
            if reply is None or reply.status:
                says = reply.words if reply else machine.sudo_says
                contact.problems.append(
                    UserError(
                        f"{machine.user} is not root, and sudo refuses: {says}",
                        "let the user use sudo there, or give its password: --ask-become-pass, or "
                        "ansible_become_password (in a vault)",
                    )
                )
                return
            contact.root = "sudo with password"
            if not settings.become_password:
                contact.notes.append(
                    "sudo wants the password: run with --ask-become-pass, or set ansible_become_password (in a vault)"
                )
        if not settings.become:
            contact.notes.append(f"{machine.user} is not root: set ansible_become: true")

    def _python(self, machine: survey.Survey) -> None:
        if machine.python_is_new_enough:
            return
        oldest = ".".join(map(str, OLDEST_PYTHON))
        what = f"{machine.interpreter} is Python {machine.python}" if machine.python else "there is no Python 3"
        self._contact.problems.append(
            UserError(
                f"{what}, {oldest} or newer is needed",
                "install one (Debian: apt-get install python3), or set ansible_python_interpreter to its path",
            )
        )

    def _hand_over(self, machine: survey.Survey) -> None:
        """Make the public key an authorised one. A machine that lets a key in already needs no other, unless asked."""
        contact, plan = self._contact, self._plan
        if not contact.means.endswith("password") and not plan.public_key:
            contact.key = "present" if self._used else "not needed"
            return
        contact.key = "no"
        key, path = self._public_key()
        if machine.keys_unread:
            raise UserError(
                f"~/.ssh/authorized_keys of {machine.user} cannot be read: {machine.keys_unread}",
                "nothing was written, or the keys in it would be lost: look at it there (disk, network file system, "
                "owner), and run again",
            )
        present = authorized_keys.contains(machine.authorized_keys, key)
        if present and machine.modes_are_safe:
            contact.key = "present"
        elif plan.check:
            contact.changed, contact.key = True, "would be made readable" if present else "would be installed"
            return
        else:
            text = machine.authorized_keys
            content = text if present else authorized_keys.extended(text, key)
            reply = self._connection.run(survey.command(survey.write_authorized_keys(content)), content)
            if reply.status:
                raise UserError(
                    f"~/.ssh/authorized_keys of {machine.user} cannot be written: {reply.words}",
                    "look at owner, mode and free space of the home directory there",
                )
            contact.changed, contact.key = True, "installed"
        self._prove(key, path)

    def _public_key(self) -> tuple[PublicKey, Path]:
        wanted = self._plan.public_key
        candidates = (
            [Path(wanted).expanduser()]
            if wanted
            else public_key_files(self._target.settings.private_key, self._plan.home)
        )
        for path in candidates:
            try:
                return authorized_keys.parse(path.read_text(), str(path)), path
            except FileNotFoundError:
                continue
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{path} cannot be read: {error}", "set trust_public_key to a .pub file") from None
        private = candidates[0].with_suffix("")
        make = f"ssh-keygen -y -f {private} > {private}.pub" if private.exists() else "ssh-keygen -t ed25519"
        raise UserError(
            f"there is no public key to hand over (looked for {', '.join(map(str, candidates))})",
            f"make one with: {make}; or set trust_public_key",
        )

    def _prove(self, key: PublicKey, path: Path) -> None:
        """Log in once more, by nothing but the key: what is installed is not yet what sshd accepts."""
        if self._used and self._used.base64 == key.base64:
            return
        ours = next((k for k in self._keys if k.base64 == key.base64), None)
        if not ours:
            self._contact.notes.append(
                f"login by {path} is not tried: ssh here does not offer its private key (a passphrase? ssh-add)"
            )
            return
        with self._connect() as connection:
            accepted = connection.try_key(ours)
        if not accepted:
            raise UserError(
                f"the public key is in ~/.ssh/authorized_keys of {self._target.user}, and sshd does not accept it",
                "look at `journalctl -u ssh` there: a home directory that others may write (StrictModes), "
                "PubkeyAuthentication no, or another AuthorizedKeysFile",
            )


def _where(verdict: Verdict) -> str:
    return ", ".join(f"{entry.path} line {entry.number}" for entry in verdict.against)


def _refused(target: Target, key: HostKey, verdict: Verdict) -> UserError:
    shown = f"{key.algorithm} {key.fingerprint}"
    if verdict.state == "revoked":
        return UserError(f"its host key {shown} is revoked in {_where(verdict)}", "do not log in there")
    known = ", ".join(dict.fromkeys(f"{e.key.algorithm} {e.key.fingerprint}" for e in verdict.against))
    remove = "; ".join(
        f"ssh-keygen -R '{target.known_as}' -f '{path}'" for path in dict.fromkeys(e.path for e in verdict.against)
    )
    return UserError(
        f"its host key has CHANGED: it shows {shown}, {_where(verdict)} has {known}; somebody may be in between",
        f"nothing was sent to it. If it was installed anew, compare the fingerprint on its console, then: {remove}",
    )


def _strangers(target: Target, before: HostKey, now: HostKey) -> UserError:
    return UserError(
        f"{target.login} showed the host key {before.fingerprint} a moment ago and now {now.fingerprint}",
        "several machines share this address, or somebody is in between",
    )

"""Whose a backup is, what opens it, and how the controller gets back what only it had."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kubewright import custody as held
from kubewright import keyring
from kubewright.backup_store import partial
from kubewright.errors import UserError
from kubewright.machine.facts import certificates

_SHORTEST_PASSPHRASE = 12
# The CAs whose certificates say which cluster it is.
_IDENTITY = ("etcd-ca.pem", "kubernetes-ca.pem")


def passphrase(value: str, file: str, environment: str) -> str:
    """The passphrase: a variable's `value`, else the first line of `file`, else of the `environment`; UserError."""
    said = value or environment
    if not value and file:
        path = Path(file).expanduser()
        try:
            mode = path.stat().st_mode
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"etcd_backup_passphrase_file: {path} cannot be read: {error}") from None
        if mode & 0o077:
            raise UserError(
                f"etcd_backup_passphrase_file: {path} has mode {mode & 0o777:04o}, so others may read it",
                f"chmod 600 {path}",
            )
        if any(line.strip() for line in lines[1:]):
            raise UserError(
                f"etcd_backup_passphrase_file: {path} has more than one line: nothing has been done",
                "only the first could be the passphrase; keep notes elsewhere",
            )
        said = lines[0] if lines else ""
    if not said:
        raise UserError(
            "there is no passphrase for backups, which hold the keys of the whole cluster: nothing has been done",
            "write one into a file of mode 0600 and set etcd_backup_passphrase_file, or etcd_backup_passphrase from a "
            "vault, or the environment's KUBEWRIGHT_BACKUP_PASSPHRASE; keep a copy away from this controller",
        )
    if len(said) < _SHORTEST_PASSPHRASE:
        raise UserError(
            f"the passphrase for backups has {len(said)} characters, {_SHORTEST_PASSPHRASE} are needed",
            "backups hold the keys of the whole cluster and travel: openssl rand -base64 24 makes a good one",
        )
    return said


def cas(pki: Path) -> list[str]:
    """SHA-256 of the certificates, bundles of a rotation included, by which a cluster is told from others."""
    paths = [pki / name for one in _IDENTITY for name in (one, f"{one[:-4]}-bundle.pem")]
    texts = [path.read_text(errors="replace") for path in paths if path.is_file()]
    return sorted({digest for text in texts for digest in certificates(text)})


def foreign(manifest: Mapping[str, Any], cluster: str, own: Iterable[str]) -> str:
    """Why a backup is one of another cluster; empty when it is ours. `own`: CA digests of this controller.

    etcd's own cluster id is no witness: every restore makes a new one.
    """
    if manifest["cluster"] != cluster:
        return f"it is one of the cluster {manifest['cluster']}, this is {cluster}"
    mine = set(own)
    if mine and not mine & set(manifest["cas"]):
        return f"it is one of another cluster that is called {cluster} too: none of its CAs is ours"
    return ""


def differing(directory: Path, secrets: Path) -> str:
    """Why Secrets of an opened backup could not be read with what this controller has; empty when they could."""
    kept, own = (place / held.ENCRYPTION_KEY for place in (directory / "secrets", secrets))
    if not (kept.is_file() and own.is_file()):
        return ""
    ours = keyring.parse(own.read_text())
    lacking = [key for key in keyring.parse(kept.read_text()) if key not in ours]
    if not lacking:
        return ""
    names = ", ".join(key.name for key in lacking)
    ways = [
        f"-e etcd_restore_secrets=replace takes pki/ and secrets/ of the backup; {secrets} and its like are moved aside"
    ]
    # The API server finds a key by its name.
    if not {key.name for key in lacking} & {key.name for key in ours}:
        former = f"{secrets / keyring.RETIRED} has those of before a rotation"
        ways.insert(
            0, f"add the line {lacking[0].name}:KEY behind the keys that are there ({former}), and run again; or"
        )
    return "\n  ".join(
        [f"its Secrets are encrypted with a key, {names}, that {own} lacks: nothing has been done", *ways]
    )


def cut_off(pki: Path, facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Machines that would not trust what a PKI directory issues. `facts`: machine -> {cas} of the preflight."""
    found = set()
    for name, path in held.CAS.items():
        files = [one for one in (pki / name, pki / f"{name[:-4]}-bundle.pem") if one.is_file()]
        ours = {digest for one in files for digest in certificates(one.read_text(errors="replace"))}
        found |= {who for who, known in facts.items() if path in known["cas"] and not ours & {*known["cas"][path]}}
    return sorted(found)


def _content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def custody(directory: Path, prefix: str, target: Path, moment: str, *, replace: bool) -> str:
    """Bring `pki` or `secrets` of an opened backup to the controller, where there is none or with `replace`.

    What was there is moved to NAME.before-MOMENT. Returns what was done; empty when the controller keeps its own.
    """
    source = directory / prefix
    full = target.is_dir() and any(target.iterdir())
    if not source.is_dir() or (full and (not replace or _content(source) == _content(target))):
        return ""
    told = f"{target} restored from the backup"
    staged = partial(target.parent, target.name)
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(source, staged)
    staged.chmod(0o700)
    if target.exists():
        aside = target.with_name(f"{target.name}.before-{moment}")
        target.rename(aside)
        told += f", the one before is {aside}"
    staged.rename(target)
    return told

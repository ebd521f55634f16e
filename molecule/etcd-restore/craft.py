"""Makes a bad backup of a good one: `craft.py corrupt|foreign SOURCE TARGET PASSPHRASE_FILE`.

corrupt: whole as a file, but the snapshot in it does not end with etcd's own checksum. foreign: of a cluster with the
same name and other CAs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from kubewright import backup, backup_archive


def main() -> None:
    """Read, alter, write."""
    kind, source, target, file = sys.argv[1:]
    secret = backup.passphrase("", file, "")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        manifest = backup_archive.read(Path(source), secret, work)
        snapshot = work / backup_archive.SNAPSHOT
        if kind == "corrupt":
            content = bytearray(snapshot.read_bytes())
            content[len(content) // 2] ^= 0xFF
            snapshot.write_bytes(content)
        else:
            for ca in (work / "pki").glob("*-ca*.pem"):
                ca.write_text("-----BEGIN CERTIFICATE-----\nb3RoZXI=\n-----END CERTIFICATE-----\n")
        facts = {key: manifest[key] for key in ("cluster", "created", "etcd")}
        facts["cas"] = backup.cas(work / "pki")
        Path(target).unlink(missing_ok=True)
        backup_archive.write(Path(target), secret, facts, snapshot, {"pki": work / "pki", "secrets": work / "secrets"})


if __name__ == "__main__":
    main()

"""Issues every certificate of a PKI directory anew, for a short life: `short.py DIRECTORY LIFE`, such as 60m."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import yaml

from kubepki import reconcile, spec
from kubepki.compare import Renewal


def main() -> int:
    """Issue."""
    directory, life = Path(sys.argv[1]), sys.argv[2]
    wanted = yaml.safe_load((directory / "spec.yml").read_text())
    for certificate in wanted["certificates"]:
        certificate["expiry"] = life
    names = [certificate["name"] for certificate in wanted["certificates"]]
    reconcile.apply(spec.parse(wanted), directory, datetime.now(UTC), renewal=Renewal(names))
    return 0


if __name__ == "__main__":
    sys.exit(main())

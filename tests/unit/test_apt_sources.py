"""What apt reads is what is read here: both formats, and back through the real apt."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kubewright.apt_sources import Source, deb822, one_line, read
from kubewright.artifacts import debian
from kubewright.errors import UserError

DEB822 = """\
Types: deb deb-src
# a comment inside a stanza
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/archive.gpg

Types: deb-src
URIs: http://sources.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
Enabled: no

Types: deb
URIs: http://embedded.example/
Suites: stable
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 -----END PGP PUBLIC KEY BLOCK-----
"""


ONE_LINE = """\
# deb http://comment.example bookworm main
deb-src http://sources.example bookworm main
deb [arch=amd64,arm64 signed-by=/k.gpg] http://mirror.example/debian bookworm main  # trailing
deb cdrom:[Debian GNU/Linux 12.0.0 _Bookworm_ - Official amd64 DVD]/ bookworm main
  deb\thttp://tabs.example/debian\tbookworm\tmain\tcontrib
deb http://other.example ./
deb [ trusted=yes lang-=de target+=x ] http://options.example bookworm main
deb nothing
"""


def test_deb822() -> None:
    armour = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n -----END PGP PUBLIC KEY BLOCK-----"
    assert list(deb822(DEB822)) == [
        Source(
            ("deb", "deb-src"),
            ("http://mirror.example/debian",),
            ("bookworm", "bookworm-updates"),
            ("main", "contrib"),
            (("signed-by", "/usr/share/keyrings/archive.gpg"),),
        ),
        Source(("deb-src",), ("http://sources.example/debian",), ("bookworm",), ("main",)),
        Source(("deb",), ("http://embedded.example/",), ("stable",), ("main",), (("signed-by", armour),)),
    ]


def test_one_line() -> None:
    main = ("main",)
    assert list(one_line(ONE_LINE)) == [
        Source(("deb-src",), ("http://sources.example",), ("bookworm",), main),
        Source(
            ("deb",),
            ("http://mirror.example/debian",),
            ("bookworm",),
            main,
            (("architectures", "amd64 arm64"), ("signed-by", "/k.gpg")),
        ),
        Source(("deb",), ("http://tabs.example/debian",), ("bookworm",), ("main", "contrib")),
        Source(("deb",), ("http://other.example",), ("./",)),
        Source(
            ("deb",),
            ("http://options.example",),
            ("bookworm",),
            main,
            (("trusted", "yes"), ("languages-remove", "de"), ("targets-add", "x")),
        ),
    ]


def targets(directory: Path) -> set[str]:
    """What apt would fetch, with sources from this directory and nothing else of the host's."""
    (directory / "lists").mkdir()
    settings = {
        "Dir::Etc::SourceList": "/dev/null" if (directory / "parts").exists() else directory / "sources.list",
        "Dir::Etc::SourceParts": directory / "parts",
        "Dir::State::Lists": directory / "lists",
        "Acquire::Languages": "none",
    }
    options = [f"-o{name}={value}" for name, value in settings.items()]
    asked = ["apt-get", "indextargets", "--no-release-info", "--format=$(CREATED_BY) $(URI) $(TRUSTED) $(SIGNED_BY)"]
    shown = subprocess.run(
        [*asked, *options], capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"}
    )
    return set(shown.stdout.splitlines())


@pytest.mark.parametrize(("name", "text"), [("sources.list", ONE_LINE), ("sources.list.d/x.sources", DEB822)])
def test_apt_reads_the_same_and_source_packages_besides(tmp_path: Path, name: str, text: str) -> None:
    text = "\n".join(line for line in text.splitlines() if not line.startswith(("deb cdrom", "deb nothing")))
    host = tmp_path / "host" / "sources.list.d"
    ours = tmp_path / "ours" / "parts"
    host.mkdir(parents=True)
    ours.mkdir(parents=True)
    (tmp_path / "host" / name).write_text(text)
    (ours / "host.sources").write_text(debian.with_sources(read(tmp_path / "host")))
    if name != "sources.list":
        host.rename(tmp_path / "host" / "parts")
    before, after = targets(tmp_path / "host"), targets(tmp_path / "ours")
    assert {line for line in before if line.startswith("Packages")}
    assert before <= after
    assert all(line.startswith("Sources") for line in after - before)
    assert any(line.startswith("Sources") for line in after - before)


def test_what_is_the_same_place_is_named_once() -> None:
    text = "deb http://a.example x main\ndeb-src http://a.example x main\ndeb-src http://b.example x main\n"
    assert debian.with_sources(list(one_line(text))) == (
        "Types: deb deb-src\nURIs: http://a.example\nSuites: x\nComponents: main\n\n"
        "Types: deb-src\nURIs: http://b.example\nSuites: x\nComponents: main\n"
    )


def test_only_files_that_apt_reads(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_bytes(b"# caf\xe9\ndeb http://a.example x main\n")
    for name in ("b.list", "c.list.save", "d.sources"):
        format_ = "Types: deb\nURIs: http://{}\nSuites: x\n" if name.endswith("sources") else "deb http://{} x main\n"
        (parts / name).write_text(format_.format(name))
    assert [source.uris for source in read(tmp_path)] == [
        ("http://a.example",),
        ("http://b.list",),
        ("http://d.sources",),
    ]
    assert read(tmp_path / "nowhere") == []
    (parts / "b.list").chmod(0)
    user = os.geteuid()
    # Root may read everything.
    os.seteuid(user or 65534)
    try:
        with pytest.raises(UserError, match=r"apt's configuration: .*: Permission denied\n.*readable"):
            read(tmp_path)
    finally:
        os.seteuid(user)

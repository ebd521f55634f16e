from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from flanneld import __version__
from flanneld.cli import COMMANDS, main


def test_version_is_one_line_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["flanneld", "-version"], {}) == 0
    assert capfd.readouterr() == ("", f"v{__version__}\n")


@pytest.mark.parametrize("word", ["-h", "-help", "--help"])
def test_help_lists_commands_and_flags(word: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["flanneld", word], {}) == 0
    out, text = capfd.readouterr()
    assert out == ""
    for command in COMMANDS:
        assert f"\n  {command} " in text
    assert "\n  -etcd-endpoints string\n" in text
    assert "-remote" not in text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-nonsense"], "unknown flag -nonsense"),
        (["-remote=192.0.2.1:8888"], "use -etcd-endpoints"),
        (["statsu"], "did you mean status?"),
        (["true"], "-ip-masq=true"),
        (["", "statsu"], "did you mean status?"),
        (["-ip-masq", "true"], "'true' is not a flag"),
    ],
)
def test_mistakes_are_status_2(words: list[str], text: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["flanneld", *words], {}) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n"), err.startswith("flanneld: ")) == ("", 1, True)
    assert text in err


@pytest.mark.parametrize("flag", ["-subnet-file=", "-subnet-file=/", "-subnet-file=/run/flannel/"])
@pytest.mark.parametrize("words", [["status"], ["explain", "10.5.1.1"], ["check", "-backend=vxlan"], ["cleanup"]])
def test_what_is_no_file_is_a_mistake(words: list[str], flag: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["flanneld", *words, flag], {}) == 2
    assert "not the name of a file" in capfd.readouterr().err
    assert main(["flanneld", "cleanup", "-cni-conf=/"], {}) == 2


@pytest.mark.parametrize("words", [["status"], ["explain", "10.5.1.1"]])
def test_a_name_that_is_too_long_is_no_traceback(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["flanneld", *words, f"-subnet-file=/run/{'x' * 300}"], {}) == 3
    assert "Is it running?" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["status", "explain", "check", "cleanup", "migrate"])
def test_a_command_gets_its_words_and_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def run(words: Sequence[str], environ: Mapping[str, str]) -> int:
        seen.extend((list(words), environ["X"]))
        return 3

    module = types.ModuleType(COMMANDS[name].module)
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, COMMANDS[name].module, module)
    assert main(["/opt/flannel/bin/flanneld", name, "-x", "192.0.2.1"], {"X": "y"}) == 3
    assert seen == [["-x", "192.0.2.1"], "y"]


@pytest.mark.parametrize("program", ["/usr/bin/mk-docker-opts.sh", "mk-docker-opts"])
def test_a_link_stands_for_a_command(program: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([program, "-h"], {}) == 1
    assert "COMBINED-KEY" in capfd.readouterr().err


def run_console(code: str, *words: str, script: str = "") -> tuple[int, bytes]:
    """Run console() with `words` after `code`, behind a shell's redirections; returns status and standard output."""
    start = f"import sys, types; from flanneld.cli import console\n{code}\nconsole()"
    done = subprocess.run(
        ["/bin/sh", "-c", f'"$@" {script}', "sh", sys.executable, "-c", start, *words],
        stdout=subprocess.PIPE,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    return done.returncode, done.stdout


MODULE = "module = types.ModuleType('x'); sys.modules['flanneld.status'] = module\n"


@pytest.mark.parametrize(("reader", "read"), [("head -1", b"x\n"), ("sleep 0.5", b"")])
def test_a_reader_that_is_gone_is_no_traceback(tmp_path: Path, reader: str, read: bytes) -> None:
    code = MODULE + "module.run = lambda words, environ: print('x\\n' * 200000) or 0"
    assert run_console(code, "status", script=f"2>{tmp_path}/errors | {reader}") == (0, read)
    assert (tmp_path / "errors").read_text() == ""


def test_a_full_disk_is_no_traceback() -> None:
    code = MODULE + "module.run = lambda words, environ: print('x') or 0"
    status, out = run_console(code, "status", script="2>&1 >/dev/full")
    assert (status, out) == (1, b"flanneld: the output cannot be written: No space left on device\n")


def test_interrupting_is_no_traceback() -> None:
    code = MODULE + "def run(words, environ): raise KeyboardInterrupt\nmodule.run = run"
    assert run_console(code, "status", script="2>&1") == (130, b"")


@pytest.mark.parametrize("script", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_not_taken_by_files(script: str) -> None:
    code = MODULE + (
        "import os\n"
        "def run(words, environ):\n"
        "    opened = os.open('/dev/zero', os.O_RDONLY)\n"
        "    print('unheard', file=sys.stderr)\n"
        "    return opened\n"
        "module.run = run"
    )
    assert run_console(code, "status", script=script)[0] >= 3


def test_the_daemon_says_what_it_was_told_but_no_secrets() -> None:
    code = (
        "import flanneld, os\n"
        "flanneld.daemon = types.ModuleType('daemon')\n"
        "os.environ.update(FLANNELD_ETCD_USERNAME='u', FLANNELD_ETCD_PASSWORD='hunter2', FLANNELD_NONSENSE='x')\n"
        "def run(options, environ):\n"
        "    print(open('/proc/self/comm').read(), options.etcd.password, flush=True)\n"
        "    return 5\n"
        "flanneld.daemon.run = run"
    )
    words = ("", "-iface=eth0", "-ip-masq", "-logtostderr=true", "-log_dir", "/var/log")
    status, out = run_console(code, *words, script="2>&1")
    first, second, third, fourth, *printed = out.decode().splitlines()
    assert (status, printed) == (5, ["flanneld", " hunter2"])
    assert first.endswith(f"] flanneld v{__version__}, Python {sys.version.split()[0]}")
    assert "] CLI flags config: {cni-conf: etcd-api:v3 etcd-cafile: " in second
    assert " etcd-password:*** " in second
    assert " iface:[eth0] " in second
    assert " ip-masq:true " in second
    assert third.startswith("W")
    assert third.endswith("] the variable FLANNELD_NONSENSE belongs to no flag")
    assert fourth.startswith("W")
    assert fourth.endswith("] without effect: -logtostderr, -log_dir; all of the log goes to standard error")

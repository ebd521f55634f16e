"""The built file, run by every Python that is found on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from interpreters import interpreters, supported

from flanneld import __version__
from kubewright.errors import UserError
from kubewright.pyz import build_flanneld, recipe

SOURCES = Path(__file__).parents[2] / "src"


FOUND = interpreters()
SUPPORTED = supported()
TOO_OLD = {version: path for version, path in FOUND.items() if version in {"2.7", "3.6", "3.7", "3.8"}}
OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
EVERY = pytest.mark.parametrize("version", sorted({OWN, *SUPPORTED}))


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_flanneld(tmp_path_factory.mktemp("pyz") / "flanneld")


def run(*command: str | Path, **environ: str) -> tuple[int, str, str]:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environ}
    )
    return done.returncode, done.stdout, done.stderr


def test_same_sources_same_bytes(tmp_path: Path, pyz: Path) -> None:
    """Whatever the process that builds it holds, and however it is optimized."""
    for flags, seed in ((["-X", "dev"], "1"), (["-OO"], "2")):
        dest = tmp_path / seed
        command = [sys.executable, *flags, "-m", "kubewright.pyz", str(dest)]
        assert run(*command, PYTHONHASHSEED=seed, PYTHONPATH=str(SOURCES)) == (0, f"{dest}\n", "")
        assert dest.read_bytes() == pyz.read_bytes()
    assert pyz.stat().st_mode & 0o777 == 0o755


def test_the_recipe_is_the_same_in_every_process() -> None:
    code = "from kubewright.pyz import recipe; print(recipe())"
    assert run(sys.executable, "-c", code, PYTHONHASHSEED="3", PYTHONPATH=str(SOURCES))[1] == f"{recipe()}\n"


def test_what_is_in_it(pyz: Path) -> None:
    with zipfile.ZipFile(pyz) as archive:
        names = set(archive.namelist())
        assert archive.testzip() is None
        assert b"permission" in archive.read("yaml/LICENSE").lower()
    sources = {str(path.relative_to(SOURCES)) for path in (SOURCES / "flanneld").rglob("*.py")}
    assert {name for name in names if name.startswith("flanneld/") and name.endswith(".py")} == sources
    assert {name.split("/")[0] for name in names} == {"flanneld", "yaml", "__main__.py"}
    modules = {name for name in names if name.endswith(".py")} - {"__main__.py"}
    assert {f"{name}c" for name in modules} == {name for name in names if name.endswith(".pyc")}
    assert "yaml/loader.py" in names
    assert "yaml/cyaml.py" not in names


@EVERY
def test_it_runs(version: str, pyz: Path, tmp_path: Path) -> None:
    python = FOUND[version]
    assert run(python, pyz, "-version") == (0, "", f"v{__version__}\n")
    status, out, told = run(python, pyz, "-help")
    assert (status, out, "-etcd-endpoints string" in told) == (0, "", True)
    (tmp_path / "subnet.env").write_text("FLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n")
    words = ["-c", "-f", tmp_path / "subnet.env", "-d", tmp_path / "docker"]
    assert run(python, pyz, "mk-docker-opts", *words) == (0, "", "")
    assert (tmp_path / "docker").read_text() == 'DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=false --mtu=1450"\n'
    assert run(python, pyz, "-nonsense")[0] == 2


@EVERY
def test_byte_code_is_used_where_it_fits(version: str, pyz: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import flanneld.options as one, yaml as two\n"
        "print(one.__file__, two.__file__, two.safe_load('{a: [1, x]}'))"
    )
    status, out, told = run(FOUND[version], "-IS", "-W", "error", "-c", code, pyz)
    ending = "pyc" if version == OWN else "py"
    expected = f"{pyz}/flanneld/options.{ending} {pyz}/yaml/__init__.{ending} {{'a': [1, 'x']}}\n"
    assert (status, out, told) == (0, expected, "")


@EVERY
def test_server_and_log_on_every_version(version: str, pyz: Path, tmp_path: Path) -> None:
    code = """
import socket, sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from flanneld import health, log, options
log.set_up(options.LogOptions(json=True))
health.SECONDS = 0.2
path = Path(sys.argv[2])
server = health.serve(path, health.probes(lambda: "", lambda: "flannel_ready 1"))
print(health.request(path, "/readyz"), health.request(path, "/metrics"))
with socket.socket(socket.AF_UNIX) as silent:
    silent.connect(str(path))
    print(silent.recv(100).split()[1].decode())
server.close()
log.logger.warning("one\\ntwo", stacklevel=1)
log.set_up(options.LogOptions(backtrace_at=("<string>", 16)))
log.logger.info("here")
"""
    status, out, told = run(FOUND[version], "-IS", "-W", "error", "-c", code, pyz, tmp_path / "socket")
    assert (status, out) == (0, "flanneld is ready flannel_ready 1\n408\n"), told
    first, second, *stack = told.splitlines()
    assert json.loads(first)["msg"] == "one\ntwo"
    assert second.endswith(" <string>:16] here")
    assert any("log_backtrace" in line or "_stack" in line for line in stack)


@EVERY
def test_every_module_is_understood(version: str) -> None:
    """Sources are compiled by the machines' Python, so none may use what the oldest one does not know."""
    code = (
        "import pathlib, sys\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).rglob('*.py')): compile(path.read_bytes(), str(path), 'exec')"
    )
    assert run(FOUND[version], "-IS", "-W", "error", "-c", code, SOURCES / "flanneld") == (0, "", "")


def test_it_starts_by_itself_and_under_other_names(pyz: Path, tmp_path: Path) -> None:
    directory = tmp_path / "with a blank"
    directory.mkdir()
    (directory / "python3").symlink_to(FOUND[OWN])
    path = f"{directory}:/usr/bin:/bin"
    (directory / "flanneld").symlink_to(pyz)
    (directory / "mk-docker-opts.sh").symlink_to(pyz)
    assert run(directory / "flanneld", "-version", PATH=path) == (0, "", f"v{__version__}\n")
    output = directory / "docker"
    assert run(directory / "mk-docker-opts.sh", "-f", directory / "no file", "-d", output, PATH=path) == (0, "", "")
    assert output.read_text() == 'DOCKER_OPTS=""\n'


def test_nothing_of_the_machine_gets_in(pyz: Path, tmp_path: Path) -> None:
    for name in ("sitecustomize", "usercustomize", "yaml", "flanneld", "logging"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('foreign code')\n")
    assert "foreign code" in run(sys.executable, "-c", "import yaml", PYTHONPATH=str(tmp_path))[2]  # it does elsewhere
    done = subprocess.run(
        [str(pyz), "-version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": f"{Path(FOUND[OWN]).parent}:/usr/bin:/bin", "PYTHONPATH": str(tmp_path), "PYTHONSTARTUP": "x"},
    )
    assert (done.returncode, done.stderr) == (0, f"v{__version__}\n")


def test_without_python(pyz: Path, tmp_path: Path) -> None:
    status, _, told = run(pyz, "-version", PATH=str(tmp_path))
    assert (status, "python3" in told) == (127, True)


def test_old_versions_of_python_are_told(pyz: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(pyz) as archive:
        start = archive.read("__main__.py").decode()
    pretended = start.replace("sys.version_info < (3, 9)", "sys.version_info < (9, 9)")
    (tmp_path / "start.py").write_text(pretended)
    for version, path in {**TOO_OLD, "": sys.executable}.items():
        status, out, told = run(path, pyz if version else tmp_path / "start.py", "-version")
        assert (status, out, told.count("\n")) == (1, "", 1)
        assert told.startswith(f"flanneld needs Python 3.9 or newer, this is {version or OWN}.")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        build_flanneld(tmp_path / "file" / "flanneld")

"""The base image: an ordinary small Debian server with SSH and what Docker links to, but nothing of kubewright."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kubewright.cache import cache_directory, settle
from kubewright.errors import UserError
from kubewright.lab.apt import AptSource, host_source
from kubewright.lab.host import require_space
from kubewright.lab.lock import locked
from kubewright.lab.run import run, succeeds

Say = Callable[[str], None]

# What a Debian server has, plus the libraries and programs that the packages docker.io, containerd, runc and the
# kubelet need at run time. Nothing that the playbooks install themselves.
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "procps",
    "iproute2",
    "iputils-ping",
    "python3",
    "python3-apt",
    "openssh-server",
    "sudo",
    "ca-certificates",
    "iptables",
    "nftables",
    "ebtables",
    "conntrack",
    "ipset",
    "ipvsadm",
    "socat",
    "ethtool",
    "chrony",
    "rsync",
    "xz-utils",
    "zstd",
    "libseccomp2",
    "libdevmapper1.02.1",
    "libsystemd0",
    "tcpdump",
    # There is no mirror in the lab to install the load balancers' packages from.
    "nginx",
    "libnginx-mod-stream",
    "keepalived",
)

# They come along with packages above; a bare machine runs none of them.
_DISABLED = ("nginx.service", "keepalived.service")

_MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "e2scrub_reap.service",
    "console-getty.service",
    "getty.target",
    "systemd-networkd-wait-online.service",
    "systemd-firstboot.service",
    # These act on the host's devices and swap, which are none of a machine's business.
    "dev-hugepages.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
)

# The clock belongs to the host: machines lack CAP_SYS_TIME. chronyd runs, serves and measures, but sets nothing.
_CHRONY = """\
[Unit]
ConditionCapability=

[Service]
ExecStart=
ExecStart=!/usr/sbin/chronyd -x $DAEMON_OPTS
"""

# {path in the image: (mode, text)}
_FILES: dict[str, tuple[int, str]] = {
    "etc/hostname": (0o644, "debian\n"),
    "etc/hosts": (0o644, "127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost ip6-loopback\n"),
    "etc/resolv.conf": (0o644, "# The lab has no name server.\n"),
    "etc/machine-id": (0o444, ""),
    "etc/fstab": (0o644, ""),
    "etc/ssh/sshd_config.d/10-lab.conf": (
        0o644,
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nMaxStartups 100\nMaxSessions 100\n",
    ),
    "etc/systemd/journald.conf.d/10-lab.conf": (0o644, "[Journal]\nStorage=persistent\nSystemMaxUse=200M\n"),
    "etc/systemd/system/chrony.service.d/10-lab.conf": (0o644, _CHRONY),
}
_NEEDED_SPACE = 2 * 2**30


def images_directory() -> Path:
    """Return where images are cached: `$KUBEWRIGHT_CACHE` or `~/.cache/kubewright`, below it `images`."""
    return cache_directory() / "images"


def digest(suite: str) -> str:
    """Return the name of the image of this recipe for a suite: it changes when the recipe does."""
    recipe = json.dumps([suite, os.uname().machine, PACKAGES, _MASKED, _DISABLED, _FILES], sort_keys=True)
    return hashlib.sha256(recipe.encode()).hexdigest()[:16]


def find_image(name: str) -> Path:
    """Return the root directory of the image that disks were made on; a `UserError` when it is gone."""
    rootfs = images_directory() / name / "rootfs"
    if not rootfs.is_dir():
        raise UserError(
            f"the base image below the disks of these machines is gone: {rootfs}",
            "no other can take its place: take the lab down and up again (python -m kubewright.lab down)",
        )
    return rootfs


def ensure_image(say: Say) -> str:
    """Return the name of the current base image, built first when the cache has none (about two minutes)."""
    source = host_source()
    images = images_directory()
    final = images / digest(source.suite)
    if not (final / "rootfs").is_dir():
        require_space(images, _NEEDED_SPACE, "the base image of the machines")
        images.mkdir(parents=True, exist_ok=True)
        with locked(images):
            if not (final / "rootfs").is_dir():
                _build(source, images, final, say)
    return final.name


def _build(source: AptSource, images: Path, final: Path, say: Say) -> None:
    for leftover in images.glob(".building-*"):
        # Only the holder of the lock builds, so this is what a killed build left.
        remove_tree(leftover)
    work = Path(tempfile.mkdtemp(dir=images, prefix=".building-"))
    try:
        say(f"building the base image: {source.suite} from {source.uri} (about two minutes, once per machine)")
        begin = time.monotonic()
        _debootstrap(source, work / "rootfs", images / "packages", say)
        _configure(work / "rootfs")
        work.chmod(0o755)
        settle(work)
        work.rename(final)
        say(f"base image built in {time.monotonic() - begin:.0f} s: {final}")
    except BaseException:
        remove_tree(work)
        raise


def remove_tree(path: Path) -> None:
    """Remove a directory and what is in it, but nothing that is mounted there."""
    run(["rm", "-rf", "--one-file-system", str(path)], timeout=600)


def _debootstrap(source: AptSource, root: Path, packages: Path, say: Say) -> None:
    packages.mkdir(exist_ok=True)
    # In mount and process namespaces of its own, which end with us: a killed debootstrap would leave /proc mounted
    # in the tree, and children that go on writing into it.
    command = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]
    command += ["debootstrap", "--variant=minbase", f"--cache-dir={packages}"]
    command += [f"--include={','.join(PACKAGES)}", f"--components={','.join(source.components)}"]
    if source.keyring:
        command.append(f"--keyring={source.keyring}")
    command += [source.suite, str(root), source.uri]
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    proxy = re.search(r'"(.+)"', _apt_proxy())
    if proxy:
        environment["http_proxy"] = proxy[1]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment,
    )  # fmt: skip
    last: list[str] = []
    spoken = 0.0
    stage, count = "", 0
    try:
        for raw in process.stdout or ():
            line = raw.strip()
            last = [*last[-4:], line] if line else last
            verb = line.removeprefix("I: ").split(" ")[0]
            count = count + 1 if verb == stage else 1
            stage = verb
            if line.startswith("I: ") and time.monotonic() - spoken > 5:
                spoken = time.monotonic()
                say(f"  {line.removeprefix('I: ').rstrip('.')} ({stage.lower()}: {count})")
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if code:
        log = root / "debootstrap/debootstrap.log"
        words = log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
        raise UserError(
            f"debootstrap of {source.suite} from {source.uri} failed: {' / '.join(last[-2:] + words)}",
            "check that apt-get update works on this host and that the disk is not full, then run it again",
        )


def _apt_proxy() -> str:
    return run(["apt-config", "dump", "--format=%v%n", "Acquire::http::Proxy"]) if shutil.which("apt-config") else ""


def _configure(root: Path) -> None:
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    for name, (mode, text) in _FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(mode)
    (root / "var/lib/dbus/machine-id").unlink(missing_ok=True)
    for archive in (root / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()
    systemctl = ["systemctl", f"--root={root}"]
    if not succeeds([*systemctl, "--version"]):
        raise UserError("systemctl is missing on the host", "apt-get install systemd")
    run([*systemctl, "mask", *_MASKED])
    run([*systemctl, "disable", *_DISABLED])
    run([*systemctl, "enable", "systemd-networkd.service", "ssh.service"])

"""What is asked of a machine on first contact, and how its answer is read. Pure.

Nothing but a POSIX shell may be expected there: whether there is a Python is one of the questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kubewright.preflight import python_is_new_enough

# A login shell may print anything before and after; only what comes between these is an answer.
_BEGIN, _KEYS = "kubewright-begin", "kubewright-authorized-keys"

# No single quotes in here: the login shell gets it between such.
_QUESTIONS = """\
echo {begin}
echo uid=$(id -u)
echo user=$(id -un)
echo architecture=$(uname -m)
if [ -r /etc/os-release ]; then (. /etc/os-release; echo "os=$PRETTY_NAME"); fi
for p in {pythons}; do
  path=$(command -v "$p") || continue
  v=$("$path" -c "import sys; print(*sys.version_info[:3], sep=chr(46))" 2>/dev/null) || continue
  case $v in 3.*) echo "python=$v"; echo "interpreter=$path"; break;; esac
done
if [ "$(id -u)" != 0 ]; then
  if command -v sudo >/dev/null; then
    if says=$(sudo -n -k true 2>&1); then echo sudo=yes; else echo sudo=no; echo "sudo_says=$says"; fi
  fi
fi
d=$HOME/.ssh
echo "directory_mode=$(stat -c %a "$d" 2>/dev/null)"
echo "file_mode=$(stat -L -c %a "$d/authorized_keys" 2>/dev/null)"
echo {keys}
LC_ALL=C exec cat "$d/authorized_keys"
"""
# POSIX: what strerror says of ENOENT in the C locale. It is no failure: a user without the file lets no key in yet.
_NO_FILE = "No such file or directory"

# The new content comes by standard input, of which a connection that breaks brings only a part. A link is followed, so
# that it stays one.
_WRITE_AUTHORIZED_KEYS = """\
set -e
umask 077
d=$HOME/.ssh
mkdir -p "$d"
chmod 700 "$d"
f=$d/authorized_keys
if [ -L "$f" ]; then f=$(readlink -f "$f"); fi
t=$f.kubewright-$$
trap "rm -f \\"$t\\"" EXIT
cat >"$t"
if [ "$(wc -c <"$t")" -ne {length} ]; then
  echo "it arrived only in part" >&2
  exit 1
fi
chmod 600 "$t"
mv -f "$t" "$f"
if command -v restorecon >/dev/null; then restorecon -F "$d" "$f" || true; fi
"""


@dataclass(frozen=True)
class Survey:
    """A machine's answer. `sudo`: yes, no, or absent; `sudo_says` is its refusal. Modes are octal text, empty: none.

    `keys_unread`: why `authorized_keys` is not the file's whole content, empty when it is.
    """

    uid: int
    user: str
    architecture: str
    os: str
    python: str
    interpreter: str
    sudo: str
    sudo_says: str
    directory_mode: str
    file_mode: str
    authorized_keys: str
    keys_unread: str

    @property
    def python_is_new_enough(self) -> bool:
        """Whether what runs on machines would run with this Python."""
        return bool(self.python) and python_is_new_enough(self.python)

    @property
    def modes_are_safe(self) -> bool:
        """Whether sshd with StrictModes would read the file."""
        return self.directory_mode == "700" and self.file_mode == "600"


def script(pythons: Sequence[str]) -> str:
    """The questions. `pythons`: names or paths of interpreters, in the order in which Ansible tries them."""
    names = " ".join(f'"{name}"' for name in pythons)
    return _QUESTIONS.format(begin=_BEGIN, keys=_KEYS, pythons=names)


def write_authorized_keys(content: str) -> str:
    """A script that replaces ~/.ssh/authorized_keys with its standard input, which must be all of `content`."""
    return _WRITE_AUTHORIZED_KEYS.replace("{length}", str(len(content.encode("utf-8", "surrogateescape"))))


def command(text: str) -> str:
    """A script as one command for a login shell."""
    quoted = text.replace("'", "'\"'\"'")
    return f"exec /bin/sh -c '{quoted}'"


def read(output: str, status: int, words: str) -> Survey | None:
    """Read what the questions printed; None when the machine did not answer them.

    `status` and the last `words` of standard error are those of their last command, which reads authorized_keys.
    """
    _, begun, answer = output.partition(f"{_BEGIN}\n")
    answer, complete, keys = answer.partition(f"{_KEYS}\n")
    values: dict[str, str] = {}
    for line in answer.splitlines():
        name, found, value = line.partition("=")
        if found:
            # Shown in a terminal later, so nothing that would control it.
            values.setdefault(name, "".join(character for character in value if character.isprintable()))
    if not begun or not complete or not values.get("uid", "").isdecimal():
        return None
    return Survey(
        uid=int(values["uid"]),
        user=values.get("user", ""),
        architecture=values.get("architecture", ""),
        os=values.get("os", ""),
        python=values.get("python", ""),
        interpreter=values.get("interpreter", ""),
        sudo=values.get("sudo", "absent"),
        sudo_says=values.get("sudo_says", ""),
        directory_mode=values.get("directory_mode", ""),
        file_mode=values.get("file_mode", ""),
        authorized_keys=keys,
        keys_unread=(words or f"status {status}") if status and not words.endswith(_NO_FILE) else "",
    )

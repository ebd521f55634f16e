"""Runs a playbook, and breaks something when one of its plays or tasks begins, however fast the machine is.

`at_play.py NAME [--time N] (--signal NAME | --run COMMAND) -- COMMAND...`: at the N-th play or task of this name, the
first when it is not said. The signal goes to all processes of the run, as Ctrl-C and a power cut do; while the other
command is run, the run stands still. Ends with the status of the run, 1 after a signal. A run that has not ended 20 s
after Ctrl-C gets another one, as from a person: Ansible waits for ever when the first one meets a worker that is just
telling something.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading


def press_again(process: subprocess.Popen[str], number: int) -> None:
    """The second Ctrl-C, where there is still somebody to get it."""
    if process.poll() is None:
        os.killpg(process.pid, number)


def main() -> int:
    """Run, break, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("play")
    parser.add_argument("--time", type=int, default=1)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--signal", choices=["INT", "KILL"])
    what.add_argument("--run")
    parser.add_argument("command", nargs="+")
    wanted = parser.parse_args()
    process = subprocess.Popen(
        wanted.command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Else its lines arrive by thousands of characters, long after the play has begun.
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    seen = 0
    for line in process.stdout or ():
        sys.stdout.write(line)
        met = line.startswith((f"PLAY [{wanted.play}]", f"TASK [{wanted.play}]"))
        seen += met
        if met and seen == wanted.time:
            if wanted.signal:
                number = getattr(signal, f"SIG{wanted.signal}")
                os.killpg(process.pid, number)
                again = threading.Timer(20, press_again, [process, number])
                again.daemon = True
                again.start()
            else:
                # Else it may have ended before the command has begun.
                os.killpg(process.pid, signal.SIGSTOP)
                try:
                    subprocess.run(wanted.run, shell=True, check=True, timeout=60)  # noqa: S602 - a line of the scenario
                finally:
                    os.killpg(process.pid, signal.SIGCONT)
    status = process.wait(60)
    if seen < wanted.time:
        sys.stdout.write(f"{wanted.play} has not begun\n")
    return min(abs(status), 1) if status < 0 else status


if __name__ == "__main__":
    sys.exit(main())

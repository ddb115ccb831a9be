"""Run a command, and end its whole process group when the flow dies or asks for it.

Called as ``python supervise.py COMMAND …`` in its own process group, with a pipe from the flow as
standard input. The kernel closes the pipe when the flow dies, however it dies. Then, or on SIGTERM,
the group is asked to end, and killed after a grace period. It imports nothing of the project, so
that it starts quickly.
"""

import os
import select
import signal
import subprocess
import sys
import time

GRACE_S = 5.0
POLL_S = 0.1


def end_group(child: "subprocess.Popen[bytes]") -> None:
    """Ask all processes of this group to end, then kill them, this one included."""
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_S)
    os.killpg(0, signal.SIGKILL)


def main(command: list[str]) -> int:
    """Run a command, and return its exit status."""
    told_to_stop = []
    # A handler, not SIG_IGN: the command would inherit that.
    signal.signal(signal.SIGTERM, lambda *_: told_to_stop.append(True))
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603
    while (status := child.poll()) is None:
        readable, _, _ = select.select([sys.stdin], [], [], POLL_S)
        if told_to_stop or (readable and not os.read(sys.stdin.fileno(), 1)):
            end_group(child)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

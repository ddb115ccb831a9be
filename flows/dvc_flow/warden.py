"""End the processes of a run when the run itself has died, however it died.

Called as ``python warden.py`` with a pipe as standard input, on which each process group that the
run starts announces itself, and the run reports those that have ended (``-`` before the number).
The kernel closes the pipe when the run dies. Then the groups that are left are asked to end, and
killed after a grace period. It imports nothing of the project, so that it starts quickly.
"""

import os
import signal
import sys
import time
from contextlib import suppress

GRACE_S = 5.0
POLL_S = 0.1


def read_groups() -> "set[int]":
    """Follow the pipe until the run ends; return the process groups that are left."""
    groups: set[int] = set()
    for line in sys.stdin:
        number = int(line)
        if number > 0:
            groups.add(number)
        else:
            groups.discard(-number)
    return groups


def send(groups: "set[int]", signum: int) -> "set[int]":
    """Send a signal to process groups; return those that exist."""
    found = set()
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signum)
            found.add(group)
    return found


def main() -> None:
    """Wait for the run's end, and end what it left."""
    groups = send(read_groups(), signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while groups and time.monotonic() < deadline:
        time.sleep(POLL_S)
        groups = send(groups, 0)
    send(groups, signal.SIGKILL)


if __name__ == "__main__":
    main()

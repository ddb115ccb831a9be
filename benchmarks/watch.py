"""Run a command, then print its exit status, seconds and peak memory in bytes as a line of JSON.

A small process of its own, because a child's peak starts at what its parent held at the fork.
"""

import json
import resource
import subprocess
import sys
import time

begin = time.perf_counter()
code = subprocess.call(sys.argv[1:])  # noqa: S603 - callers give fixed commands
seconds = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(f"\n{json.dumps([code, seconds, peak])}")

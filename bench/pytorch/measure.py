"""Runs a command and writes its exit status, wall time and peak resident memory as JSON to a file.

    python bench/pytorch/measure.py REPORT COMMAND [ARGUMENT ...]

rss_peak_bytes is the kernel's own figure for the largest process of the command's tree (ru_maxrss of waited-for
children), so no peak between two polls is missed.
"""

import json
import resource
import subprocess
import sys
import time

started = time.perf_counter()
code = subprocess.call(sys.argv[2:])
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
with open(sys.argv[1], "w") as f:
    json.dump({"exit_code": code, "wall_seconds": seconds, "rss_peak_bytes": peak}, f)
sys.exit(code if code >= 0 else 128 - code)

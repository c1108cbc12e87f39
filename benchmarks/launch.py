"""Run a command and write its time and memory: python launch.py REPORT LIMIT COMMAND...

A program of its own that imports little, since the peak memory of a process begins with that of its parent. LIMIT:
bytes of address space, 0 for no limit. REPORT: a JSON file, see measure.Used.
"""

import json
import os
import resource
import subprocess
import sys
import time

INTERVAL = 0.05  # seconds between two measurements of the address space


def address_space(process: int) -> int:
    """Bytes of the largest address space that a living process has had, 0 where the system does not report it."""
    try:
        with open(f"/proc/{process}/status", encoding="utf-8") as status:
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmPeak:")), 0)
    except OSError:
        return 0


def main() -> None:
    report, limit, *command = sys.argv[1:]
    started, address = time.perf_counter(), 0
    if int(limit):
        resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))  # which the command inherits
    process = subprocess.Popen(command)
    while True:
        address = max(address, address_space(process.pid))
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        time.sleep(INTERVAL)
    used = {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": time.perf_counter() - started,
        "processor": usage.ru_utime + usage.ru_stime,
        "peak": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "address": address,
    }
    with open(report, "w", encoding="utf-8") as file:
        json.dump(used, file)
    process.returncode = used["code"]


if __name__ == "__main__":
    main()

"""How long until all processes on all machines are gone, once one dies, and until they are back.

    python -m tests.measure_launch --trials=24 --machines=3 --processes=2 [--json=FILE]

All machines are this one. The processes do nothing, so that only the supervisors are measured. In
each trial one process, of a machine and a place that change in turn, gets SIGKILL; in every fourth
trial it is the supervisor of a machine other than the leader's, for which a spare stands by.
"""

import argparse
import json
import os
import pathlib
import signal
import statistics
import sys
import tempfile
import time

from tests import launched

BODY = "if start == 1:\n    time.sleep(600)"


def trial(folder: pathlib.Path, number: int, machines: int, processes: int) -> tuple[float, float]:
    """Seconds from a death until (all processes are gone, those of the next start are there)."""
    run = launched.Launched(folder, BODY, machines, processes_=processes)
    hosts = [f"host-{place}" for place in range(machines + 1)]
    total = machines * processes
    try:
        run.start(*hosts)
        pids = [int(row[4]) for row in run.seen(1, total)]
        if number % 4 == 3:
            victim = run.supervisors[hosts[1 + number // 4 % (machines - 1)]].pid
        else:
            victim = pids[number % total]
        time.sleep(0.3 + 0.01 * (number % 7))
        begin = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        run.wait(lambda: not any(is_alive(pid) for pid in pids))
        gone = time.monotonic() - begin
        run.seen(2, total)
        return gone, time.monotonic() - begin
    finally:
        run.close()


def is_alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def describe(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    found = {"median": statistics.median(ordered), "p95": p95, "largest": ordered[-1]}
    return {name: round(value, 2) for name, value in found.items()}


def main(argv) -> int:
    parser = argparse.ArgumentParser(prog="tests.measure_launch", description=__doc__)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--machines", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json")
    args = parser.parse_args(argv)
    pairs = []
    for number in range(args.trials):
        with tempfile.TemporaryDirectory() as name:
            pairs.append(trial(pathlib.Path(name), number, args.machines, args.processes))
            print(number, *(f"{seconds:.2f}" for seconds in pairs[-1]), flush=True)
    gone, back = zip(*pairs, strict=True)
    result = vars(args) | {
        "seconds_until_gone": describe(gone),
        "seconds_until_back": describe(back),
    }
    result.pop("json")
    print(json.dumps(result))
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Runs the suites of a GoogleTest program, each in a process of its own, several at a time.

    python3 tests/gpu_suites.py PROGRAM [FILTER]

An illegal access ends a CUDA context and with it everything that the process does later: so it costs one suite, and a
kernel that never ends costs one suite's limit of time. Prints a line a suite when it ends and the end of what a failed
one printed. Fails when any suite does, and when there is none."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed

JOBS = min(4, os.cpu_count() or 1)
TAIL = 25
SECONDS = 45  # of a suite


def suites(program: str, pattern: str) -> dict[str, list[str]]:
    """The tests of each suite. In a listing names of suites end in a dot; their tests follow, indented."""
    listing = subprocess.run([program, "--gtest_list_tests", f"--gtest_filter={pattern}"], stdout=subprocess.PIPE, text=True)
    if listing.returncode != 0:
        sys.exit(f"{program} does not list its tests: exit code {listing.returncode}")
    found: dict[str, list[str]] = {}
    suite = ""
    for line in listing.stdout.splitlines():
        name = line.split("#")[0].rstrip()
        if name.startswith("  "):
            found[suite].append(suite + name.strip())
        elif name.endswith("."):
            suite = name
            found[suite] = []
    return found


def run(program: str, tests: list[str]) -> tuple[str, str]:
    """How it ended, and what it printed."""
    threads = str(max(1, (os.cpu_count() or 1) // JOBS))
    try:
        result = subprocess.run([program, f"--gtest_filter={':'.join(tests)}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                env={"OMP_NUM_THREADS": threads, **os.environ}, text=True, errors="replace", timeout=SECONDS)
    except subprocess.TimeoutExpired as stopped:
        printed = stopped.stdout or b""
        return f"FAILED: stopped after {SECONDS} s", printed.decode(errors="replace") if isinstance(printed, bytes) else printed
    is_good = result.returncode == 0 and f"[  PASSED  ] {len(tests)} test" in result.stdout
    return "passed" if is_good else f"FAILED with {result.returncode}", result.stdout


def main() -> int:
    program, pattern = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "*"
    found = suites(program, pattern)
    failed = 0
    with ThreadPoolExecutor(JOBS) as pool:
        running = {pool.submit(run, program, tests): suite for suite, tests in found.items()}
        for done in as_completed(running):
            suite = running[done]
            end, printed = done.result()
            print(f"{suite[:-1]}: {len(found[suite])} tests {end}", flush=True)
            if end != "passed":
                failed += 1
                print("\n".join(f"    {line}" for line in printed.splitlines()[-TAIL:]), flush=True)
    print(f"{len(found) - failed} suites passed, {failed} failed")
    return 1 if failed or not found else 0


if __name__ == "__main__":
    sys.exit(main())

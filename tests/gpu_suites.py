"""Runs the suites of a GoogleTest program, each in a process of its own, several at a time.

    python3 tests/gpu_suites.py PROGRAM [FILTER]

An illegal access ends a CUDA context and with it everything that the process does later: so it costs one suite. Prints
a line a suite and the end of what a failed one printed. Fails when any suite does, and when there is none."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

JOBS = min(4, os.cpu_count() or 1)
TAIL = 25


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


def run(program: str, tests: list[str]) -> subprocess.CompletedProcess:
    threads = str(max(1, (os.cpu_count() or 1) // JOBS))
    return subprocess.run([program, f"--gtest_filter={':'.join(tests)}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env={"OMP_NUM_THREADS": threads, **os.environ}, text=True, errors="replace")


def main() -> int:
    program, pattern = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "*"
    found = suites(program, pattern)
    failed = 0
    with ThreadPoolExecutor(JOBS) as pool:
        results = pool.map(lambda tests: run(program, tests), found.values())
        for (suite, tests), result in zip(found.items(), results):
            is_good = result.returncode == 0 and f"[  PASSED  ] {len(tests)} test" in result.stdout
            print(f"{suite[:-1]}: {len(tests)} tests {'passed' if is_good else f'FAILED with {result.returncode}'}", flush=True)
            if not is_good:
                failed += 1
                print("\n".join(f"    {line}" for line in result.stdout.splitlines()[-TAIL:]), flush=True)
    print(f"{len(found) - failed} suites passed, {failed} failed")
    return 1 if failed or not found else 0


if __name__ == "__main__":
    sys.exit(main())

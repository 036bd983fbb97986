"""Runs the tests of the asan build that are no MPI programs.

    python3 tests/asan_tests.py BUILD_FOLDER

The tests come from CTest. One whose command is an MPI launcher is left out, and so are the whole
runs of tests/run and tests/cluster. Leaks are looked for except in a program that links libmpi, whose plugins leak. The last line is
`N passed, N failed`."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

LAUNCHERS = re.compile(r"\b(mpirun|mpiexec|mpiexec\.hydra|srun|prterun)\b")

SCRIPTS = re.compile(r"/tests/(run|cluster)/")


def tests(build: str) -> list[dict]:
    listing = subprocess.run(["ctest", "--test-dir", build, "--show-only=json-v1"], check=True,
                             capture_output=True, text=True).stdout
    return [test for test in json.loads(listing)["tests"] if "command" in test]


def links_mpi(command: list[str]) -> bool:
    """Whether any program of the command line is linked with MPI."""
    for word in command:
        if os.path.isfile(word) and os.access(word, os.X_OK):
            if "libmpi" in subprocess.run(["ldd", word], capture_output=True, text=True).stdout:
                return True
    return False


def property_of(test: dict, name: str, default):
    return next((item["value"] for item in test["properties"] if item["name"] == name), default)


def run(test: dict) -> subprocess.CompletedProcess:
    """The test's own command, in its folder and environment, with what sanitizers are told."""
    environment = dict(os.environ, OMP_NUM_THREADS="1")  # tests run side by side; threads that wait would spin
    environment.update(entry.split("=", 1) for entry in property_of(test, "ENVIRONMENT", []))
    environment["ASAN_OPTIONS"] = "detect_leaks=0" if links_mpi(test["command"]) else "detect_leaks=1"
    suppressions = os.path.join(os.path.dirname(os.path.abspath(__file__)), "support", "leaks.txt")
    environment["LSAN_OPTIONS"] = f"suppressions={suppressions}:print_suppressions=0"
    environment["UBSAN_OPTIONS"] = "print_stacktrace=1"
    return subprocess.run(test["command"], env=environment, cwd=property_of(test, "WORKING_DIRECTORY", "."),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def main() -> int:
    passed = failed = 0
    every = tests(sys.argv[1])
    chosen = [test for test in every
              if not any(LAUNCHERS.search(os.path.basename(word)) or SCRIPTS.search(word) for word in test["command"])]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for test, result in zip(chosen, pool.map(run, chosen)):
            if result.returncode == 0:
                passed += 1
                print(f"asan: {test['name']} passed", flush=True)
            else:
                failed += 1
                print(f"{result.stdout}\nasan: {test['name']} FAILED", flush=True)
    print(f"asan: {len(every) - len(chosen)} MPI programs left out")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())

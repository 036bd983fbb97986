"""Runs the tests of the asan build that are no MPI programs.

    python3 tests/asan_tests.py BUILD_FOLDER

The tests come from CTest. One whose command is an MPI launcher is left out, and so are the whole
runs of tests/run. Leaks are looked for except in a program that links libmpi, whose plugins leak. The last line is
`N passed, N failed`."""

import json
import os
import re
import subprocess
import sys

LAUNCHERS = re.compile(r"\b(mpirun|mpiexec|mpiexec\.hydra|srun|prterun)\b")


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


def main() -> int:
    build = sys.argv[1]
    passed = failed = skipped = 0
    for test in tests(build):
        name, command = test["name"], test["command"]
        if any(LAUNCHERS.search(os.path.basename(word)) or "/tests/run/" in word for word in command):
            skipped += 1
            continue
        environment = dict(os.environ)
        environment["ASAN_OPTIONS"] = "detect_leaks=0" if links_mpi(command) else "detect_leaks=1"
        suppressions = os.path.join(os.path.dirname(os.path.abspath(__file__)), "support", "leaks.txt")
        environment["LSAN_OPTIONS"] = f"suppressions={suppressions}:print_suppressions=0"
        environment["UBSAN_OPTIONS"] = "print_stacktrace=1"
        status = subprocess.run(["ctest", "--test-dir", build, "--output-on-failure", "--no-tests=error", "-R",
                                 f"^{re.escape(name)}$"], env=environment, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True)
        if status.returncode == 0:
            passed += 1
            print(f"asan: {name} passed", flush=True)
        else:
            failed += 1
            print(f"{status.stdout}\nasan: {name} FAILED", flush=True)
    print(f"asan: {skipped} MPI programs left out")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())

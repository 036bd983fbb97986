"""Runs the suites of a GoogleTest program, each in a process of its own, several at a time.

    python3 tests/gpu_suites.py PROGRAM [FILTER] [--logs DIR] [--seconds 20]

An illegal access ends a CUDA context and with it everything that the process does later, and a kernel that never ends
costs its suite's limit of time. So of a suite that does not pass, those tests that it did not report as good run again, each
alone: a test that then passes only suffered from another one. Suites that need the device come first, those of the CPU last.

Prints a line a suite when it ends, what matters of what a failed one printed, and a line a test that ran alone; DIR gets all
that each process printed. Stopped by SIGTERM it says what was not finished. Fails when any suite does, and when there is none."""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

CORES = os.cpu_count() or 1
JOBS = 8 if CORES >= 16 else min(4, CORES)
SECONDS_ALONE = 15
ENDING_SECONDS = 2  # what the device's driver holds may outlive a kill
HEAD, TAIL = 15, 10  # lines of a failed suite: from the first that tells a failure, and the last
FAILURE = re.compile(r"\bfailure\b|\berror\b|\bterminate|\bwhat\(\)|\bfailed\b|assert", re.IGNORECASE)
GOOD = re.compile(r"\[       OK \] (\S+)")


class Stopped(Exception):
    """SIGTERM came."""


def suites(program: str, pattern: str) -> dict[str, list[str]]:
    """The tests of each suite, suites in the order to run them. In a listing a suite's name ends in a dot, its tests are indented."""
    listing = subprocess.run([program, "--gtest_list_tests", f"--gtest_filter={pattern}"], stdout=subprocess.PIPE, text=True)
    if listing.returncode != 0:
        sys.exit(f"{program} does not list its tests: exit code {listing.returncode}")
    found: dict[str, list[str]] = {}
    suite = ""
    for line in listing.stdout.splitlines():
        name = line.split("#")[0].rstrip()
        if name.startswith("  "):
            found[suite].append(f"{suite}.{name.strip()}")
        elif name.endswith("."):
            suite = name[:-1]
            found[suite] = []
    return {name: found[name] for name in sorted(found, key=lambda name: (turn(name), -len(found[name])))}


def turn(suite: str) -> int:
    """Lower ones first: what is worth the most, on a device, before what needs none. Large ones begin before small ones."""
    if "Cpu" in suite:
        return 2
    return 0 if re.search(r"(^|/)Cuda|Ttt", suite) else 1


def first_failure(lines: list[str]) -> int | None:
    """Where output begins to speak of a failure; names of tests do not count."""
    told = (place for place, line in enumerate(lines) if not line.startswith(("[", "Note: ")) and FAILURE.search(line))
    return next(told, None)


def what_matters(lines: list[str]) -> list[str]:
    begin = first_failure(lines)
    if begin is None:
        return lines[-TAIL:]
    end = min(begin + HEAD, len(lines))
    rest = max(end, len(lines) - TAIL)
    return lines[begin:end] + ([f"... {rest - end} lines"] if rest > end else []) + lines[rest:]


class Processes:
    """Runs tests of one program; knows what runs."""

    def __init__(self, program: str, logs: Path):
        self.program, self.logs = program, logs
        self.running: dict[str, tuple[subprocess.Popen, float]] = {}
        self.starting = threading.Lock()
        # Threads that spin while they wait starve those of other processes.
        self.environment = {"OMP_NUM_THREADS": str(max(1, CORES // JOBS)), "OMP_WAIT_POLICY": "passive", **os.environ}

    def lines(self, name: str) -> list[str]:
        return self.log(name).read_text(errors="replace").splitlines()

    def log(self, name: str) -> Path:
        return self.logs / (re.sub(r"[^\w.-]", "_", name) + ".txt")

    def run(self, name: str, tests: list[str], seconds: float) -> str:
        """How it ended."""
        with self.starting, self.log(name).open("wb") as log:
            # A session of its own: the signal that stops this script does not reach it, and with it ends what it started.
            process = subprocess.Popen([self.program, f"--gtest_filter={':'.join(tests)}"], stdout=log, stderr=subprocess.STDOUT,
                                       env=self.environment, start_new_session=True)
            self.running[name] = process, time.monotonic()
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end(process)
            return f"FAILED: stopped after {seconds:g} s"
        finally:
            del self.running[name]
        is_good = code == 0 and any(f"[  PASSED  ] {len(tests)} test" in line for line in self.lines(name))
        return "passed" if is_good else f"FAILED with {code}"

    def end(self, process: subprocess.Popen) -> None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(ENDING_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass

    def end_all(self) -> dict[str, float]:
        """What ran, and for how many seconds; nothing starts any more."""
        self.starting.acquire()
        running = dict(self.running)
        for process, _ in running.values():
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return {name: time.monotonic() - begun for name, (_, begun) in running.items()}


class Run:
    def __init__(self, processes: Processes, found: dict[str, list[str]], seconds: float):
        self.processes, self.found, self.seconds = processes, found, seconds
        self.pool = ThreadPoolExecutor(JOBS)
        self.failed: list[str] = []
        self.not_done: list[str] = []

    def all(self, tasks: dict[str, list[str]], seconds: float):
        """Name and end of each task, as they end."""
        self.not_done = list(tasks)
        futures = {self.pool.submit(self.processes.run, name, tests, seconds): name for name, tests in tasks.items()}
        for done in as_completed(futures):
            self.not_done.remove(futures[done])
            yield futures[done], done.result()

    def suites(self) -> None:
        for suite, end in self.all(self.found, self.seconds):
            print(f"{suite}: {len(self.found[suite])} tests {end}", flush=True)
            if end != "passed":
                self.failed.append(suite)
                print_indented(what_matters(self.processes.lines(suite)))

    def alone(self) -> None:
        good = {name: set(GOOD.findall("\n".join(self.processes.lines(name)))) for name in self.failed}
        large = [suite for suite in self.failed if len(self.found[suite]) > 1]
        again = [test for suite in large for test in self.found[suite] if test not in good[suite]]
        for name, end in self.all({f"alone {test}": [test] for test in again}, SECONDS_ALONE):
            lines = self.processes.lines(name)
            begin = None if end == "passed" else first_failure(lines)
            print(f"{name}: {end}" + ("" if begin is None else ": " + " ".join(lines[begin:begin + 2])[:200]), flush=True)

    def report_stop(self) -> None:
        running = self.processes.end_all()
        waiting = [name for name in self.not_done if name not in running]
        print("not finished: " + ", ".join(f"{name} ({seconds:.0f} s)" for name, seconds in running.items()) +
              "; never begun: " + (", ".join(waiting) or "none"))
        for name in running:
            print(f"{name} until then:")
            print_indented(self.processes.lines(name)[-TAIL:])
        sys.stdout.flush()


def print_indented(lines: list[str]) -> None:
    for line in lines:
        print(f"    {line}")
    sys.stdout.flush()


def stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # timeout(1) sends it to the process and to its group
    raise Stopped


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("filter", nargs="?", default="*")
    parser.add_argument("--logs", type=Path, help="a folder that gets all that each process printed")
    parser.add_argument("--seconds", type=float, default=20, help="of a suite")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        logs = options.logs or Path(scratch)
        logs.mkdir(parents=True, exist_ok=True)
        run = Run(Processes(options.program, logs), suites(options.program, options.filter), options.seconds)
        signal.signal(signal.SIGTERM, stop)
        is_stopped = False
        try:
            run.suites()
            run.alone()
        except Stopped:
            run.report_stop()
            is_stopped = True
    if is_stopped:
        os._exit(1)  # threads still wait for what may never end
    print(f"{len(run.found) - len(run.failed)} suites passed, {len(run.failed)} failed")
    return 1 if run.failed or not run.found else 0


if __name__ == "__main__":
    sys.exit(main())

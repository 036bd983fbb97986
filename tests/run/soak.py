"""Trains for a while under launch/supervise.sh --restart while faults strike at random, and compares with a run that
nobody disturbed: the same curve and the same state bit for bit, and nobody had to help.

  bash tests/soak.sh [--minutes 30] [--seed 1] [--seconds-between-faults 10] [--ranks 4]

The last line is `N passed, N failed`.
"""

import argparse
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import harness
from harness import OK, SMALL, SOURCE, STOPPED, RunTest, checkpoints, curve, last_step, ranks_of, wait_until

WATCHDOG = ("watchdog.silence_seconds=3", "watchdog.step_seconds=5", "watchdog.evaluation_seconds=5",
            "watchdog.checkpoint_seconds=5")


class Process:
    """A process id where the harness expects a Popen."""

    def __init__(self, pid: int):
        self.pid = pid


class Soak(RunTest):
    """Not a test of unittest's own: it takes arguments and prints figures."""

    def __init__(self, options):
        super().__init__()
        self.options = options
        self.random = random.Random(options.seed)
        self.faults = Counter()
        self.log = self.directory / "soak.log"
        self.restart_seconds, self.lost_steps, self.manual_steps = [], 0, 0

    def settings(self, steps: int) -> tuple[str, ...]:
        interval = max(1, steps // max(1, int(self.options.minutes * 60 / 5)))
        return (*SMALL, *WATCHDOG, f"train.steps={steps}", f"optimizer.decay_steps={steps}", "eval.num_windows=8",
                f"checkpoint.interval_steps={interval}", f"eval.interval_steps={interval * 4}",
                f"log.interval_steps={interval}")

    def undisturbed(self) -> tuple[Path, int, float]:
        """Half of the time, so that the disturbed run has the other half for its losses."""
        ranks, seconds = self.options.ranks, self.options.minutes * 30
        harness.TIMEOUT_SECONDS = 10 * seconds + 60
        begin = time.monotonic()
        self.train("rate", *self.settings(2000), "train.steps=500", ranks=ranks)
        steps = max(50, int(500 / (time.monotonic() - begin) * seconds * 0.8))
        begin = time.monotonic()
        golden = self.directory / "golden"
        result = harness.ttt(*self.train_arguments(golden, *self.settings(steps)), ranks=ranks,
                             timeout=harness.TIMEOUT_SECONDS)
        self.assertEqual(result.code, OK, result.err)
        return golden, steps, time.monotonic() - begin

    def start(self, run: Path, steps: int) -> subprocess.Popen:
        command = ["bash", SOURCE / "launch/supervise.sh", "--restart", run, *harness.MPIRUN, "-np", self.options.ranks,
                   harness.BINARY, *self.train_arguments(run, *self.settings(steps))]
        return subprocess.Popen(list(map(str, command)), env=harness.ENVIRONMENT, stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=open(self.log, "a"))

    def launcher(self, supervisor: subprocess.Popen) -> Process | None:
        path = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children")
        children = path.read_text().split() if supervisor.poll() is None else []
        return Process(int(children[0])) if children else None

    def strike(self, supervisor: subprocess.Popen, run: Path) -> str:
        """The fault's name, empty when there was nobody to strike."""
        launcher = self.launcher(supervisor)
        ranks = list(ranks_of(launcher).values()) if launcher else []
        if len(ranks) < self.options.ranks:
            return ""
        fault = self.random.choice(["kill", "kill", "kill in a save", "stop", "crash", "kill launcher", "request"])
        victim = launcher.pid if fault == "kill launcher" else self.random.choice(ranks)
        if fault == "kill in a save":
            saving = lambda: supervisor.poll() is not None or any((run / "checkpoints").glob("*.tmp"))
            wait_until(saving, "a save")
            time.sleep(self.random.uniform(0, 0.005))
        number = {"stop": signal.SIGSTOP, "crash": signal.SIGSEGV, "request": signal.SIGUSR1}.get(fault, signal.SIGKILL)
        try:
            os.kill(victim, number)
        except ProcessLookupError:
            return ""
        return fault

    def resumed_at(self) -> list[int]:
        """The steps at which the run was resumed so far."""
        return list(map(int, re.findall(r"resumed checkpoint=\S+ step=(\d+)", self.log.read_text())))

    def wait_for_restart(self, supervisor: subprocess.Popen, run: Path, steps: int, reached: int) -> subprocess.Popen:
        """Returns after the first new step; a run that stopped on request is started as a job script would."""
        begin, num_resumed = time.monotonic(), len(self.resumed_at())
        while time.monotonic() - begin < 60:
            if supervisor.poll() == STOPPED:
                supervisor = self.start(run, steps)
            if supervisor.poll() is not None:
                break
            resumed = self.resumed_at()
            if len(resumed) > num_resumed and last_step(run) > resumed[-1]:
                self.restart_seconds.append(time.monotonic() - begin)
                self.lost_steps += max(0, reached - resumed[-1])
                break
            time.sleep(0.01)
        return supervisor

    def disturbed(self, run: Path, steps: int) -> float:
        begin = time.monotonic()
        supervisor = self.start(run, steps)
        wait_until(lambda: supervisor.poll() is not None or checkpoints(run), "the first checkpoint")
        while True:
            pause = self.random.expovariate(1 / self.options.seconds_between_faults)
            until = time.monotonic() + pause
            while time.monotonic() < until and supervisor.poll() is None:
                time.sleep(0.05)
            if supervisor.poll() is not None:
                break
            reached = last_step(run)
            if fault := self.strike(supervisor, run):
                self.faults[fault] += 1
                supervisor = self.wait_for_restart(supervisor, run, steps, reached)
        if supervisor.returncode != OK:
            self.manual_steps += 1
        return time.monotonic() - begin

    def run_all(self) -> bool:
        golden, steps, golden_seconds = self.undisturbed()
        print(f"undisturbed: {steps} steps in {golden_seconds:.0f} s on {self.options.ranks} ranks", flush=True)
        run = self.directory / "soaked"
        seconds = self.disturbed(run, steps)
        print(f"disturbed:   {sum(self.faults.values())} faults in {seconds:.0f} s: "
              f"{', '.join(f'{count} x {fault}' for fault, count in sorted(self.faults.items()))}")
        if self.restart_seconds:
            print(f"restart: median {statistics.median(self.restart_seconds):.2f} s, "
                  f"longest {max(self.restart_seconds):.2f} s; steps done again: {self.lost_steps}; "
                  f"goodput {golden_seconds / seconds:.3f}")
        if self.manual_steps:
            print(self.log.read_text()[-4000:])
            return False
        same = curve(run) == curve(golden) and self.state(run) == self.state(golden)
        print("the curves and states are", "the same" if same else "DIFFERENT", "bit for bit")
        return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds-between-faults", type=float, default=10)
    parser.add_argument("--ranks", type=int, default=4)
    Soak.setUpClass()
    try:
        passed = Soak(parser.parse_args()).run_all()
    finally:
        Soak.doClassCleanups()
    print("1 passed, 0 failed" if passed else "0 passed, 1 failed")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

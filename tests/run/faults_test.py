"""What happens to a run from outside: crashes, a launcher that is killed, full disks, files that change under it."""

import os
import random
import resource
import shlex
import shutil
import signal
import stat
import subprocess
import time
import unittest
from pathlib import Path

import harness
from harness import (CORRUPT, IO, OK, PERMISSION, SOURCE, checkpoints, curve, end, finish, last_step, ranks_of, rows,
                     signal_ranks, start, ttt, wait_until)
from resume_test import RUN, STEPS, ResumeTest

ENDLESS = ("train.steps=100000", "checkpoint.interval_steps=0", "eval.interval_steps=0")
KILLS_A_RANK = int(os.environ.get("TTT_KILLS_A_RANK", 1))
# Mounts of their own, where the machine lets us.
NAMESPACE = ("unshare", "--mount", "--map-root-user")


def can_mount() -> bool:
    return subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0


def is_gone(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


class Processes(ResumeTest):
    def running(self, run, *overrides, **options):
        process = self.begin(run, *overrides, **options)
        wait_until(lambda: process.poll() is not None or last_step(run) >= 6, "step 6")
        return process

    def assert_continues(self, run, **options):
        result = self.attempt(run, **options)
        self.assertEqual(result.code, OK, result.err)
        self.assert_same_run(run, self.golden)

    def test_a_crash_says_who_and_where(self):
        for number in signal.SIGSEGV, signal.SIGABRT:
            with self.subTest(signal=number.name):
                run = self.directory / f"crash-{number.name}"
                process = self.running(run, *ENDLESS[:1], ranks=2)
                self.assertTrue(signal_ranks(process, number, 1))
                result = finish(process)
                self.assertEqual(result.code, 128 + number)
                self.assertRegex(result.err, rf"event=crash rank 1 \(host \S+\) in step \d+: ended by {number.name}\n")

    def test_a_rank_that_leaves_early(self):
        """As a library does that calls exit(0)."""
        run = self.directory / "leaves-early"
        result = finish(self.begin(run, ranks=2, fault="exit@1:step_begin:8:0"))
        self.assertNotEqual(result.code, OK)
        self.assertLess(last_step(run), 8)
        self.assert_continues(run, ranks=2)

    def test_a_killed_launcher_leaves_no_rank_behind(self):
        run = self.directory / "launcher-killed"
        process = self.running(run, "train.steps=40", "log.interval_steps=1", ranks=4)
        ranks = ranks_of(process).values()
        process.kill()
        wait_until(lambda: all(map(is_gone, ranks)), "the ranks' end", timeout=5)
        finish(process)
        self.assert_continues(run, ranks=2)

    def test_a_second_signal_ends_a_run_that_hangs(self):
        run = self.directory / "second-signal"
        process = self.running(run, *ENDLESS, ranks=2)
        self.assertTrue(signal_ranks(process, signal.SIGSTOP, 1))
        signal_ranks(process, signal.SIGTERM, 0)
        time.sleep(1.2)
        signal_ranks(process, signal.SIGTERM, 0)
        self.assertEqual(finish(process, timeout=10).code, 128 + signal.SIGTERM)

    def test_a_terminal_that_went_away(self):
        read_end, closed = os.pipe()
        os.close(read_end)
        with open("/dev/full", "w") as full:
            for name, terminal in ("closed", closed), ("full", full.fileno()):
                with self.subTest(terminal=name):
                    run = self.directory / f"terminal-{name}"
                    code = subprocess.call([harness.BINARY, *map(str, self.train_arguments(run, *RUN))],
                                           env=harness.ENVIRONMENT, stdout=terminal, stderr=terminal)
                    self.assertEqual(code, OK)
                    self.assert_same_run(run, self.golden)
        os.close(closed)

    def test_resumed_again_and_again(self):
        run = self.directory / "again"
        for steps in range(5, STEPS, 7):
            result = self.attempt(run, f"train.steps={steps}", "eval.interval_steps=0")
            self.assertEqual(result.code, OK, result.err)
        first, second = self.directory / "first", self.directory / "second"
        for copy in first, second:
            shutil.copytree(run, copy)
            self.assert_continues_without_evaluations(copy)

    def assert_continues_without_evaluations(self, run):
        result = self.attempt(run)
        self.assertEqual(result.code, OK, result.err)
        self.assertEqual(rows(run), rows(self.golden))
        self.assertTrue(self.state(run) == self.state(self.golden))


class Supervised(ResumeTest):
    def supervise(self, run, *overrides, ranks=2):
        command = ["bash", SOURCE / "launch/supervise.sh", "--restart", run, *harness.MPIRUN, "-np", str(ranks),
                   harness.BINARY, *self.train_arguments(run, *RUN, *overrides)]
        process = subprocess.Popen(list(map(str, command)), env=harness.ENVIRONMENT, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(end, process)
        return process

    def launcher_of(self, supervisor) -> int:
        children = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def test_a_run_is_started_again(self):
        run = self.directory / "restarted"
        process = self.supervise(run)
        for step, target in (7, "rank"), (17, "launcher"):
            wait_until(lambda: process.poll() is not None or last_step(run) >= step, f"step {step}")
            launcher = self.launcher_of(process)
            victims = ranks_of_id(launcher).values() if target == "rank" else [launcher]
            for victim in list(victims)[:1]:
                os.kill(victim, signal.SIGKILL)
        result = finish(process)
        self.assertEqual(result.code, OK, result.err)
        self.assertEqual(result.err.count("event=restart exit_code=137"), 2, result.err)
        self.assert_same_run(run, self.golden)

    def test_it_gives_up_without_progress(self):
        run = self.directory / "no-progress"
        process = subprocess.run(["bash", SOURCE / "launch/supervise.sh", "--restart", run, "bash", "-c",
                                  "echo start; exit 75"], capture_output=True, text=True)
        self.assertEqual((process.returncode, process.stdout.count("start")), (75, 3))
        self.assertIn("event=give_up", process.stderr)

    def test_what_would_fail_again_is_not_started_again(self):
        for code in 0, 65, 70, 80, 81:
            process = subprocess.run(["bash", SOURCE / "launch/supervise.sh", "--restart", self.directory / "any", "bash",
                                      "-c", f"echo start; exit {code}"], capture_output=True, text=True)
            self.assertEqual((process.returncode, process.stdout.count("start")), (code, 1))


class KilledSaves(ResumeTest):
    """One of four ranks is killed at a system call of a save: what is there afterwards is the save before or this one."""

    def train_with_fault(self, run, rank, **fault):
        """A run to step 12, with saves at 5, 10 and 12; the fault is armed on one rank."""
        variables = {"LD_PRELOAD": os.environ["TTT_FAULT_SHIM"], "TTT_FAULT_DIRECTORY": run / "checkpoints",
                     **{f"TTT_FAULT_{key.upper()}": value for key, value in fault.items()}}
        arm = " ".join(f"{key}={value}" for key, value in variables.items())
        script = f'if [ "$OMPI_COMM_WORLD_RANK" = {rank} ]; then export {arm}; fi; exec "$@"'
        arguments = self.train_arguments(run, *RUN, "train.steps=12", "eval.interval_steps=0")
        process = subprocess.Popen(list(map(str, [*harness.MPIRUN, "--mca", "odls_base_sigkill_timeout", "0", "-np", 4,
                                                  "bash", "-c", script, "ttt", harness.BINARY, *arguments])),
                                   env=harness.ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        self.addCleanup(end, process)
        return finish(process)

    def test_every_rank_at_several_calls(self):
        generator = random.Random(7)
        for rank in range(4):
            counted = self.directory / f"count-{rank}"
            result = self.train_with_fault(self.directory / f"whole-{rank}", rank, at=0, count=counted)
            self.assertEqual(result.code, OK, result.err)
            num_calls = int(counted.read_text())
            for at in generator.sample(range(1, num_calls + 1), KILLS_A_RANK):
                with self.subTest(rank=rank, at=at, of=num_calls):
                    run = self.directory / f"killed-{rank}-{at}"
                    result = self.train_with_fault(run, rank, at=at, kind="kill")
                    self.assertEqual(result.code, 137, result.err)
                    for checkpoint in checkpoints(run):
                        self.succeed("inspect", "--verify", checkpoint)
                    result = self.attempt(run, ranks=2)
                    self.assertEqual(result.code, OK, result.err)
                    self.assertEqual(rows(run), rows(self.golden))
                    self.assertTrue(self.state(run) == self.state(self.golden))


    def test_one_failed_save_does_not_end_a_run(self):
        run = self.directory / "failed-once"
        result = self.train_with_fault(run, 1, at=3, kind="error")
        self.assertEqual(result.code, OK, result.err)
        self.assertIn("event=checkpoint_failed 1 of 3 in a row: checkpoint of step 5 failed on rank 1", result.err)
        self.assertEqual([path.name for path in (run / "checkpoints").iterdir()].count("step-00000005"), 0)
        result = self.attempt(run)
        self.assertEqual(result.code, OK, result.err)
        self.assertEqual(rows(run), rows(self.golden))


class Files(ResumeTest):
    def test_a_full_disk(self):
        """The first checkpoint fits, a later one does not; with more room the run goes on from the first."""
        if not can_mount():
            self.skipTest("this machine lets nobody mount")
        run = self.directory / "full"
        run.mkdir()
        copy = self.directory / "full-copy"
        train = self.quoted(*self.train_arguments(run, *RUN, "checkpoint.keep_last=8"))
        size = sum(path.stat().st_size for path in checkpoints(self.golden)[-1].iterdir())
        script = f"""
            mount -t tmpfs -o size={size * 5 // 2} tmpfs {run}
            {train}; echo first=$?
            find {run}/checkpoints -name '*.tmp*' | wc -l
            mount -o remount,size=64m {run}
            {train} >&2; echo second=$?
            cp -r {run} {copy}"""
        result = subprocess.run([*NAMESPACE, "bash", "-c", script], capture_output=True, text=True,
                                env=harness.ENVIRONMENT)
        self.assertIn(f"first={IO}\n0\nsecond={OK}\n", result.stdout, result.stderr)
        self.assertIn(str(run), result.stderr)
        self.assertIn("No space left on device", result.stderr)
        self.assertIn("step=", result.stderr.partition("resumed")[2])
        self.assert_same_run(copy, self.golden)

    def quoted(self, *arguments) -> str:
        return shlex.join([harness.BINARY, *map(str, arguments)])

    def test_a_limit_on_file_sizes(self):
        size = max(path.stat().st_size for path in checkpoints(self.golden)[-1].iterdir())
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
        run = self.directory / "limited"
        result = finish(self.begin(run, preexec_fn=limit))
        self.assertEqual(result.code, IO, result.err)
        self.assertIn(str(run), result.err)
        self.assertIn("File too large", result.err)
        self.assertEqual(self.attempt(run).code, OK)
        self.assert_same_run(run, self.golden)

    def test_what_a_killed_run_left_is_no_checkpoint(self):
        run = self.copy_golden("leftovers")
        newest = checkpoints(run)[-1]
        unfinished = newest.with_name("step-00000999.tmp")
        shutil.copytree(newest, unfinished)
        (newest.parent / "step-00000998").mkdir()
        (newest.parent / "step-00000997").write_bytes(b"\0" * 100)
        (newest.parent / "latest").symlink_to("nowhere")
        result = self.attempt(run, "train.steps=41")
        self.assertEqual(result.code, OK, result.err)
        self.assertEqual(last_step(run), 41)
        self.assertFalse(unfinished.exists())

    def test_a_shard_that_is_cut_short_while_it_is_read(self):
        tokens = self.directory / "cut-tokens"
        shutil.copytree(self.tokens, tokens)
        run = self.directory / "cut"
        process = self.begin(run, *ENDLESS, f"data.train={tokens}", ranks=2)
        wait_until(lambda: process.poll() is not None or last_step(run) >= 3, "step 3")
        for shard in tokens.glob("train-*.h5"):
            os.truncate(shard, 4096)
        result = finish(process)
        self.assertEqual(result.code, CORRUPT, result.err)
        self.assertRegex(result.err, rf"in step \d+: {tokens}/train-00000.h5 was cut short")

    def test_files_without_permission(self):
        run = self.copy_golden("closed")
        tokens = self.directory / "closed-tokens"
        shutil.copytree(self.tokens, tokens)
        binary = self.directory / "ttt"
        shutil.copy(harness.BINARY, binary)
        self.addCleanup(setattr, harness, "BINARY", harness.BINARY)
        harness.BINARY = str(binary)
        user = {"user": 65534} if os.getuid() == 0 else {}  # root may read anything
        self.directory.chmod(0o755)
        if user:
            for path in [run, *run.rglob("*")]:
                os.chown(path, 65534, 65534)
        shard, checkpoint = tokens / "train-00000.h5", checkpoints(run)[-1] / "rank-00000.h5"
        for closed, overrides in (shard, [f"data.train={tokens}"]), (checkpoint, ["train.steps=41"]):
            with self.subTest(file=closed.name):
                mode = stat.S_IMODE(closed.stat().st_mode)
                closed.chmod(0)
                result = self.run_as(user, run, *overrides)
                self.assertEqual(result.code, PERMISSION, result.err)
                self.assertIn(str(closed), result.err)
                closed.chmod(mode)

    def run_as(self, user, run, *overrides):
        return ttt(*self.train_arguments(run, *RUN, *overrides), cwd="/", **user)


def ranks_of_id(launcher: int) -> dict[int, int]:
    class Launcher:
        pid = launcher
    return ranks_of(Launcher)


if __name__ == "__main__":
    unittest.main()

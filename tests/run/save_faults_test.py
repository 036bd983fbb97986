"""A save in which one system call goes wrong, for every system call of it and every way to go wrong.

The run has a checkpoint of step 1; the save of step 2 is disturbed. Afterwards the newest checkpoint is 1 or 2, whole,
and the next save works."""

import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from harness import (BINARY, ENVIRONMENT, IO, MPIRUN, OK, SMALL, RunTest, checkpoints, end, finish, last_step,
                     step_of)

PROGRAM = os.environ["TTT_SAVE_PROGRAM"]
SHIM = os.environ["TTT_FAULT_SHIM"]


class SaveFaults(unittest.TestCase):
    def setUp(self):
        # In memory where there is such a file system: thousands of small files are written.
        parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.root = Path(tempfile.mkdtemp(prefix="ttt-faults-", dir=parent))
        self.addCleanup(shutil.rmtree, self.root)
        (self.root / "tokenizer.model").write_bytes(b"pieces" * 100)
        self.assertEqual(self.program("save", self.root / "first", 1).returncode, 0)
        self.calls = self.count_calls()

    def program(self, *arguments, **faults):
        environment = dict(os.environ, OMP_NUM_THREADS="1", **{f"TTT_FAULT_{k.upper()}": str(v)
                                                               for k, v in faults.items()})
        if faults:
            environment["LD_PRELOAD"] = SHIM
        return subprocess.run([PROGRAM, *map(str, arguments)], env=environment, capture_output=True, text=True,
                              timeout=60)

    def fresh_run(self) -> Path:
        run = self.root / "run"
        for path in self.root.glob("run*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.root / "first", run)
        return run

    def count_calls(self) -> int:
        run = self.fresh_run()
        counted = self.root / "count"
        result = self.program("save", run, 2, directory=run, at=0, count=counted)
        self.assertEqual(result.returncode, 0, result.stderr)
        calls = int(counted.read_text())
        self.assertGreater(calls, 40, "the shim sees too few calls")
        return calls

    def sweep(self, kind: str, expected_codes: set) -> set:
        """The newest steps that were found, over all calls."""
        newest = set()
        for at in range(1, self.calls + 1):
            with self.subTest(kind=kind, at=at):
                run = self.fresh_run()
                result = self.program("save", run, 2, directory=run, at=at, kind=kind)
                self.assertIn(result.returncode, expected_codes, result.stderr)
                if result.returncode > 0:
                    self.assertIn(str(run), result.stderr, "the message names the file")
                check = self.program("check", run)
                self.assertEqual(check.returncode, 0, check.stdout + check.stderr)
                step = int(check.stdout)
                self.assertIn(step, {1, 2})
                if result.returncode == 0:
                    self.assertEqual(step, 2, "a save that reports success is there")
                newest.add(step)
                self.assertEqual(self.program("save", run, 3).returncode, 0)
                self.assertEqual(self.program("check", run).stdout, "3\n")
                self.assertEqual([path.name for path in (run / "checkpoints").iterdir()], ["step-00000003"])
        return newest

    def test_killed_at_every_call(self):
        self.assertEqual(self.sweep("kill", {-9}), {1, 2})

    def test_power_lost_at_every_call(self):
        self.assertEqual(self.sweep("power", {-9}), {1, 2})

    def test_power_lost_after_a_save(self):
        for existed in True, False:
            run = self.fresh_run()
            if not existed:
                shutil.rmtree(run / "checkpoints")
            self.assertEqual(self.program("save", run, 2, directory=run, at=-1).returncode, -9)
            self.assertEqual(self.program("check", run).stdout, "2\n")

    def test_every_call_fails(self):
        self.assertIn(1, self.sweep("error", {0, 74}))

    def test_disk_full_from_every_call_on(self):
        self.assertIn(1, self.sweep("full", {0, 74}))

    def test_a_flipped_bit_is_found_before_the_commit(self):
        """Or does not matter: HDF5 writes some bytes twice."""
        self.assertEqual(self.sweep("flip", {0, 74}), {1, 2})

    def test_short_and_interrupted_writes_are_continued(self):
        self.assertEqual(self.sweep("short", {0}), {2})
        self.assertEqual(self.sweep("interrupt", {0}), {2})


class SavesOfRanks(RunTest):
    """What goes wrong on rank 1 of 2 while both train on. A step takes some milliseconds, so that a save outlasts many."""

    STEPS = 60
    RUN = (*SMALL, f"train.steps={STEPS}", "checkpoint.interval_steps=20", "checkpoint.keep_last=9", "eval.num_windows=0")

    def start(self, run, *overrides, **faults):
        command = [BINARY, *map(str, self.train_arguments(run, *self.RUN, *overrides))]
        variables = [f"TTT_FAULT_{key.upper()}={value}" for key, value in faults.items()]
        shimmed = ["env", f"LD_PRELOAD={SHIM}", f"TTT_FAULT_DIRECTORY={run}/checkpoints", *variables, *command]
        process = subprocess.Popen([*MPIRUN, "-np", "1", *command, ":", "-np", "1", *shimmed], env=ENVIRONMENT,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(end, process)
        return process

    def calls_of_a_shard(self) -> int:
        """Of rank 1, which makes no others below the directory of checkpoints."""
        run, counted = self.scratch(), self.scratch()
        result = finish(self.start(run, "checkpoint.interval_steps=0", at=0, count=counted))
        self.assertEqual(result.code, OK, result.err)
        return int(counted.read_text())

    def assert_intact(self, run):
        for checkpoint in checkpoints(run):
            self.succeed("inspect", checkpoint, "--verify")

    def test_nothing_is_committed_before_all_ranks_are_done(self):
        calls = self.calls_of_a_shard()
        for kind, code, committed in (("kill", 128 + 9, [20]), ("error", OK, [20, 60])):
            run = self.scratch()
            # The second shard's last call, its fsync, after a wait in which rank 0 is done and both train on.
            result = finish(self.start(run, kind=kind, at=2 * calls, wait=1))
            self.assertEqual(result.code, code, result.err)
            if kind == "error":
                self.assertIn("checkpoint of step 40 failed on rank 1", result.err)
            self.assertGreater(last_step(run), 41, "training went on meanwhile")
            self.assertEqual([step_of(path) for path in checkpoints(run)], committed)
            self.assert_intact(run)
            self.assertEqual(finish(self.start(run)).code, OK)
            self.assertEqual([step_of(path) for path in checkpoints(run)][-1], 60)
            self.assert_intact(run)

    def test_a_save_that_is_due_waits_for_the_one_before(self):
        run = self.scratch()
        result = finish(self.start(run, "checkpoint.interval_steps=1", "train.steps=3", kind="wait",
                                   at=self.calls_of_a_shard(), wait=2))
        self.assertEqual(result.code, OK, result.err)
        self.assertIn("checkpoint_waited step=2", result.err)
        self.assertEqual([step_of(path) for path in checkpoints(run)], [1, 2, 3])
        self.assert_intact(run)

    def test_the_files_do_not_depend_on_who_writes_them(self):
        """Run after run, rank by rank; the manifests but for the two fields that differ, and their digests."""
        files = []
        for asynchronous in "true", "false":
            run = self.scratch()
            self.assertEqual(finish(self.start(run, f"checkpoint.asynchronous={asynchronous}")).code, OK)
            content = {str(path.relative_to(run)): path.read_bytes() for path in (run / "checkpoints").rglob("*.*")}
            for name in content:
                if name.endswith(".textproto"):
                    content[name] = [line for line in content[name].decode().splitlines()
                                     if not line.strip().startswith(("asynchronous", "output_directory", "# xxh3"))]
            files.append(content)
        self.assertEqual(len(files[0]), 3 * 3)
        self.assertTrue(files[0] == files[1], "the checkpoints differ")


if __name__ == "__main__":
    unittest.main(verbosity=2)

"""A save in which one system call goes wrong, for every system call of it and every way to go wrong.

The run has a checkpoint of step 1; the save of step 2 is disturbed. Afterwards the newest checkpoint is 1 or 2, whole,
and the next save works."""

import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

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

    def test_short_and_interrupted_writes_are_continued(self):
        self.assertEqual(self.sweep("short", {0}), {2})
        self.assertEqual(self.sweep("interrupt", {0}), {2})


if __name__ == "__main__":
    unittest.main(verbosity=2)

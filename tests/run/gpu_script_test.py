"""tests/gpu.sh without a GPU: emulated programs in the place of those for a device."""

import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class GpuScript(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.out = Path(directory.name)

    def run_script(self, **environment: str) -> subprocess.CompletedProcess:
        settings = {"OUT": str(self.out), "TTT_GPU_REHEARSAL": "1", "TTT_GPU_BIN": str(Path(os.environ["TTT_BINARY"]).parent)}
        return subprocess.run(["bash", str(ROOT / "tests/gpu.sh")], env={**os.environ, **settings, **environment},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def test_parts_end_in_rows_and_a_count(self):
        result = self.run_script(TTT_GPU_PARTS="doctor kernels bench bench_steps")
        self.assertEqual(result.returncode, 0, result.stdout)
        self.assertEqual(result.stdout.splitlines()[-1], "4 passed, 0 failed")
        self.assertEqual((self.out / "results.txt").read_text(), result.stdout)
        rows = [json.loads(line) for line in (self.out / "bench.jsonl").read_text().splitlines()]
        work = {row["work"] for row in rows}
        for name in ("ttt_linear forward", "ttt_mlp forward+backward", "attention forward+backward", "../tiny step"):
            self.assertIn(name, work)
        shapes = [row["shape"] for row in rows if row["work"] == "../tiny decode"]
        self.assertEqual(shapes, [f"B={batch} T=2 {steps}" for batch in (1, 2) for steps in ("queued", "replayed")])
        for row in rows:
            if row["work"] != "ceilings":
                self.assertGreater(row["tokens_per_second"], 0, row)
                self.assertLessEqual(row["least_ms"], row["median_ms"], row)

    def test_a_part_without_time_is_a_failure(self):
        result = self.run_script(TTT_GPU_PARTS="kernels", TTT_GPU_SECONDS="0")
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertIn("== kernels: NOT RUN, no time left", result.stdout)
        self.assertEqual(result.stdout.splitlines()[-1], "0 passed, 1 failed")

    def test_a_part_that_fails_is_a_failure(self):
        result = self.run_script(TTT_GPU_PARTS="kernels", TTT_GPU_BIN="/nowhere")
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertEqual(result.stdout.splitlines()[-1], "0 passed, 1 failed")

    def test_without_a_driver_it_ends_at_once(self):
        broken = self.out / "nvidia-smi"
        broken.write_text("#!/bin/sh\nexit 9\n")
        broken.chmod(0o755)
        result = self.run_script(TTT_GPU_REHEARSAL="0", PATH=f"{self.out}:{os.environ['PATH']}")
        self.assertEqual(result.returncode, 64, result.stdout)
        self.assertIn("tests/gpu.sh: no driver: nvidia-smi fails.", result.stdout.splitlines()[-1])
        self.assertNotIn("==", result.stdout)

    def suites(self, program: str) -> subprocess.CompletedProcess:
        path = self.out / "program"
        path.write_text(f"#!/bin/sh\n[ $1 = --gtest_list_tests ] && printf 'Slow.\\n  A\\nGood.\\n  A\\n  B\\n' && exit\n{program}")
        path.chmod(0o755)
        return subprocess.run(["python3", "-c", "import sys; sys.path.insert(0, sys.argv.pop(1)); import gpu_suites; gpu_suites.SECONDS = 1; "
                               "sys.exit(gpu_suites.main())", str(ROOT / "tests"), str(path)], stdout=subprocess.PIPE, text=True)

    def test_a_suite_that_hangs_is_stopped_and_the_others_are_reported(self):
        result = self.suites("case $1 in *Slow*) echo begun; exec sleep 20;; esac\necho '[  PASSED  ] 2 tests.'\n")
        self.assertEqual(result.returncode, 1)
        self.assertEqual(result.stdout.splitlines(), ["Good: 2 tests passed", "Slow: 1 tests FAILED: stopped after 1 s", "    begun",
                                                      "1 suites passed, 1 failed"])


if __name__ == "__main__":
    unittest.main()

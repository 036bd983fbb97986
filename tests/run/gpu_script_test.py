"""tests/gpu.sh without a GPU: emulated programs in the place of those for a device."""

import json
import os
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def ends(pid_file: Path) -> bool:
    """Whether that process is gone, or dead and not yet collected, within five seconds."""
    status = Path("/proc") / pid_file.read_text().strip() / "stat"
    for _ in range(50):
        if not status.exists() or status.read_text().split()[2] == "Z":
            return True
        time.sleep(0.1)
    return False


class GpuScript(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.out = Path(directory.name)

    def program(self, name: str, body: str) -> None:
        path = self.out / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def run_script(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        settings = {"OUT": str(self.out), "TTT_GPU_REHEARSAL": "1", "TTT_GPU_BIN": str(Path(os.environ["TTT_BINARY"]).parent)}
        return subprocess.run(["bash", str(ROOT / "tests/gpu.sh"), *arguments], env={**os.environ, **settings, **environment},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def test_parts_end_in_rows_and_a_count(self):
        self.program("nvidia-smi", f"echo $$ >{self.out}/pid\necho timestamp, clocks\nexec sleep 60")
        result = self.run_script(TTT_GPU_PARTS="doctor kernels bench bench_steps", PATH=f"{self.out}:{os.environ['PATH']}")
        self.assertEqual(result.returncode, 0, result.stdout)
        self.assertEqual(result.stdout.splitlines()[-1], "4 passed, 0 failed")
        self.assertEqual((self.out / "results.txt").read_text(), result.stdout)
        self.assertEqual((self.out / "clocks.csv").read_text(), "timestamp, clocks\n")
        self.assertTrue(ends(self.out / "pid"))
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

    def test_pytorch_is_looked_for_without_being_run(self):
        (self.out / "torch.py").write_text(f"open('{self.out}/imported', 'w')\n")
        result = self.run_script(TTT_GPU_PARTS="doctor", PYTHONPATH=str(self.out))
        self.assertEqual(result.returncode, 0, result.stdout)
        self.assertNotIn("== peers", result.stdout)
        self.assertFalse((self.out / "imported").exists())

    def test_a_model_that_hangs_does_not_cost_the_other(self):
        self.program("ttt", "case $* in *linear_cpu*) exec sleep 60;; *mlp_cpu*) exit 3;; esac")
        result = subprocess.run([sys.executable, str(ROOT / "tests/gpu_training.py"), str(self.out / "ttt"), str(self.out / "training"),
                                 "--seconds", "1"], stdout=subprocess.PIPE, text=True)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(result.stdout.splitlines(), ["linear: a run was stopped after 1 s: FAILED",
                                                      "mlp: a run ended with exit code 3: FAILED"])

    def test_no_part_at_all_is_a_failure(self):
        result = self.run_script(TTT_GPU_PARTS="kernel")
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertEqual(result.stdout.splitlines()[-1], "0 passed, 0 failed")

    def test_a_part_that_fails_is_a_failure(self):
        result = self.run_script(TTT_GPU_PARTS="kernels", TTT_GPU_BIN="/nowhere")
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertEqual(result.stdout.splitlines()[-1], "0 passed, 1 failed")

    def test_without_a_driver_it_ends_at_once(self):
        self.program("nvidia-smi", "exit 9")
        result = self.run_script(TTT_GPU_REHEARSAL="0", PATH=f"{self.out}:{os.environ['PATH']}")
        self.assertEqual(result.returncode, 64, result.stdout)
        self.assertIn("tests/gpu.sh: no driver: nvidia-smi fails.", result.stdout.splitlines()[-1])
        self.assertNotIn("==", result.stdout)

    def test_a_driver_that_cannot_be_asked_does_not_keep_a_bundle_from_being_tried(self):
        self.program("nvidia-smi", "exit 9")
        bundle = self.out / "bundle"
        (bundle / "bin").mkdir(parents=True)
        (bundle / "COMMIT").write_text("v1-2-gabc-dirty\n")
        self.program("bundle/bin/ttt", "echo it starts")
        result = self.run_script(str(bundle), TTT_GPU_REHEARSAL="0", TTT_GPU_PARTS="doctor", PATH=f"{self.out}:{os.environ['PATH']}")
        self.assertEqual(result.returncode, 0, result.stdout)
        for line in ("tests/gpu.sh: nvidia-smi fails; trying all the same", "programs of v1-2-gabc-dirty", "it starts"):
            self.assertIn(line, result.stdout.splitlines())

    def test_a_part_that_outlives_its_end_is_said_to_be_stopped(self):
        (self.out / "bin").mkdir()
        self.program("bin/ttt", "trap '' TERM\necho begun\nwhile :; do sleep 0.1; done")
        # Three seconds are the least that a part begins with.
        result = self.run_script(TTT_GPU_PARTS="doctor", TTT_GPU_BIN=str(self.out / "bin"), TTT_GPU_SECONDS="4", TTT_GPU_GRACE="0.2")
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertRegex(result.stdout, r"begun\ndoctor: stopped after its [34] s\n-- doctor: FAILED with 137")

    def test_counters_of_each_kernel_are_printed(self):
        self.program("ncu", "case \"$*\" in *mlp::.*backward*) echo ==ERROR== no such kernel; exit 1;; esac\n"
                     "echo '    Registers Per Thread      register/thread     128'\necho '    Other     7'")
        result = self.run_script(TTT_GPU_PARTS="ncu", PATH=f"{self.out}:{os.environ['PATH']}")
        self.assertIn("ttt_mlp forward: \n    Registers Per Thread: 128 register/thread\nttt_mlp backward: NOT MEASURED\n"
                      "    ==ERROR== no such kernel\n3 of 4 kernels measured\n-- ncu: FAILED with 1", result.stdout)
        self.assertEqual(result.stdout.splitlines()[-1], "0 passed, 1 failed")


TESTS = """
tests = ["Plain.A", "Values/CudaThing.A", "Values/CudaThing.B", "Values/CudaThing.C", "Values/CudaThing.D", "CpuOnly.A"]
if "--gtest_list_tests" in sys.argv:
    for suite in dict.fromkeys(test.split(".")[0] for test in tests):
        print(f"{suite}.")
        for test in tests:
            if test.startswith(suite + "."):
                print("  " + test.split(".")[1])
    sys.exit()
mine = sys.argv[1].partition("=")[2].split(":")
"""


class GpuSuites(unittest.TestCase):
    """tests/gpu_suites.py over a made-up GoogleTest program."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name)

    def suites(self, body: str, *before: str, seconds: float = 20) -> subprocess.CompletedProcess:
        program = self.path / "program"
        program.write_text(f"#!{sys.executable}\nimport sys, time\n{TESTS}{body}")
        program.chmod(0o755)
        return subprocess.run([*before, sys.executable, str(ROOT / "tests/gpu_suites.py"), str(program), "--logs", str(self.path / "logs"),
                               "--seconds", str(seconds)], stdout=subprocess.PIPE, text=True)

    def test_a_suite_that_hangs_is_stopped_and_the_others_are_reported(self):
        result = self.suites("if mine == ['Plain.A']: print('begun', flush=True); time.sleep(60)\n"
                             "print(f'[  PASSED  ] {len(mine)} tests.')\n", seconds=1)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(sorted(result.stdout.splitlines()[:2]), ["CpuOnly: 1 tests passed", "Values/CudaThing: 4 tests passed"])
        self.assertEqual(result.stdout.splitlines()[2:], ["Plain: 1 tests FAILED: stopped after 1 s", "    begun",
                                                          "2 suites passed, 1 failed"])

    # B breaks what comes after it, as an illegal access does: C and D fail beside it and pass alone.
    BREAKS = """
broken = []
for test in mine:
    print(f"[ RUN      ] {test}")
    if test.endswith(".B"):
        broken = [test]
    if broken:
        print(f"thing.cpp:7: Failure\\ncause of {test}")
        print("\\n".join(f"detail {i} of {test}" for i in range(20)))
        print(f"[  FAILED  ] {test}")
    else:
        print(f"[       OK ] {test} (1 ms)")
if broken:
    print("\\n".join(f"[  FAILED  ] {test}" for test in mine * 10))
    sys.exit(1)
print(f"[  PASSED  ] {len(mine)} tests.")
"""

    def test_of_a_broken_suite_the_cause_is_kept_and_its_tests_run_alone(self):
        result = self.suites(self.BREAKS)
        self.assertEqual(result.returncode, 1)
        lines = result.stdout.splitlines()
        at = lines.index("Values/CudaThing: 4 tests FAILED with 1")
        shown = [line for line in lines[at + 1:] if line.startswith("    ")]
        self.assertEqual(shown[:2], ["    thing.cpp:7: Failure", "    cause of Values/CudaThing.B"])
        self.assertRegex(shown[15], r"^    \.\.\. \d+ lines$")
        self.assertEqual(len(shown), 15 + 1 + 10)
        self.assertEqual(sorted(line for line in lines if line.startswith("alone")), [
            "alone Values/CudaThing.B: FAILED with 1: thing.cpp:7: Failure cause of Values/CudaThing.B",
            "alone Values/CudaThing.C: passed", "alone Values/CudaThing.D: passed"])
        self.assertEqual(lines[-1], "2 suites passed, 1 failed")
        self.assertIn("detail 19 of Values/CudaThing.C", (self.path / "logs/Values_CudaThing.txt").read_text())

    def test_stopped_it_says_what_was_not_finished_and_ends_it(self):
        # One job, whatever the machine: the device's suite hangs, the others wait.
        script = ROOT / "tests/gpu_suites.py"
        body = "import os\nopen(os.environ['PID_FILE'], 'w').write(str(os.getpid()))\nprint('reached 7', flush=True)\ntime.sleep(60)\n"
        program = self.path / "program"
        program.write_text(f"#!{sys.executable}\nimport sys, time\n{TESTS}{body}")
        program.chmod(0o755)
        one_job = "import sys; sys.path.insert(0, sys.argv.pop(1)); import gpu_suites; gpu_suites.JOBS = 1; sys.exit(gpu_suites.main())"
        result = subprocess.run(["timeout", "-k", "5", "2", sys.executable, "-c", one_job, str(script.parent), str(program)],
                                env={**os.environ, "PID_FILE": str(self.path / "pid")}, stdout=subprocess.PIPE, text=True)
        self.assertEqual(result.returncode, 124)
        self.assertRegex(result.stdout, r"^not finished: Values/CudaThing \(\d s\); never begun: Plain, CpuOnly\n"
                         r"Values/CudaThing until then:\n    reached 7\n$")
        self.assertTrue(ends(self.path / "pid"))


if __name__ == "__main__":
    unittest.main()

"""The device benchmark (tests/bench/device) on the emulator, where a row fails."""

import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ["TTT_BINARY"]).parent / "cuda_emulated_bench"


class DeviceBench(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.folder = Path(directory.name)
        (self.folder / "presets").mkdir()  # small runs take ../tiny

    def run_groups(self, *groups: str, **changes: str) -> tuple[subprocess.CompletedProcess, list[dict]]:
        """With configs/tiny.textproto changed: the value of each named field."""
        lines = [f"  {key}: {changes[key]}" if (key := line.split(":")[0].strip()) in changes else line
                 for line in (ROOT / "configs/tiny.textproto").read_text().splitlines()]
        (self.folder / "tiny.textproto").write_text("\n".join(lines))
        rows = self.folder / "rows.jsonl"
        command = [PROGRAM, "--smoke", "--budget", "1", "--presets", self.folder / "presets", "--json", rows, *groups]
        result = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return result, [json.loads(line) for line in rows.read_text().splitlines()]

    def test_a_preset_that_fails_is_a_row_and_the_others_follow(self):
        result, rows = self.run_groups("steps", "attention", mixer="NONSENSE")
        self.assertEqual(result.returncode, 64, result.stdout)
        self.assertEqual([row["work"] for row in rows],
                         ["ceilings", "../tiny step", "attention forward", "attention forward+backward"])
        self.assertIn("NONSENSE", rows[1]["failed"])
        self.assertIn(f"FAILED: {rows[1]['failed']}", result.stdout)
        for row in rows[2:]:
            self.assertGreater(row["tokens_per_second"], 0)
            self.assertEqual(row["attention"], "own")
            self.assertIn(f"{row['work']} (own) ", result.stdout)

    def test_a_step_that_fails_is_a_row_and_so_is_the_next(self):
        result, rows = self.run_groups("steps", mixer="LINEAR_ATTENTION", hidden_size="256", num_heads="1")
        self.assertEqual(result.returncode, 64, result.stdout)
        self.assertEqual([row["shape"] for row in rows[1:]], ["B=2 T=16", "B=1 T=32"])
        for row in rows[1:]:
            self.assertIn("linear attention with head dim 256", row["failed"])

    def test_a_model_that_does_not_fit_is_out_of_memory(self):
        result, rows = self.run_groups("steps", "decoding", intermediate_size="1048576", hidden_size="1048576", num_layers="64")
        self.assertEqual(result.returncode, 83, result.stdout)
        self.assertEqual([row["work"] for row in rows[1:]], ["../tiny step", "../tiny decode"])
        for row in rows[1:]:
            self.assertIn("out of memory", row["failed"])

    def test_generation_reads_weights_and_states(self):
        result, rows = self.run_groups("decoding", mixer="TTT_LINEAR")
        self.assertEqual(result.returncode, 0, result.stdout)
        moved = {row["shape"]: row["bytes_per_second"] * row["median_ms"] / 1e3 for row in rows[1:]}
        one, two = (moved[f"B={batch} T=2 queued"] for batch in (1, 2))
        state = 2 * 2 * (32 * 32 + 32) * 4  # layers, heads, matrix and bias, fp32
        self.assertAlmostEqual(two - one, 2 * 3 * state, delta=1)
        self.assertGreater(one - 2 * 3 * state, 2 * 2 * 100_000)  # parameters in bf16, more than these


if __name__ == "__main__":
    unittest.main()

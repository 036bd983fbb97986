"""What a run does when its numbers go wrong, on several ranks: all of them alike, and after an interruption as before."""

import math
import re
import struct
import subprocess
import unittest

from harness import (BINARY, ENVIRONMENT, OK, SMALL, RunTest, checkpoints, finish, read_safetensors, rows, start,
                     step_of)

NUMERICAL, REPLICAS_DIFFER, KILLED = 81, 82, 137
STEPS = 14
RUN = (*SMALL, f"train.steps={STEPS}", "optimizer.warmup_steps=0", "checkpoint.interval_steps=4",
       "checkpoint.keep_last=9", "eval.num_windows=0", "log.interval_steps=100")
FIRST_TENSOR = "model.embed_tokens.weight"
WINDOW = ("guard.spike_window=4", "guard.spike_deviations=50")


class GuardsTest(RunTest):
    def faulty(self, name, fault, *overrides, ranks=0):
        """(exit code, standard error, run)."""
        run = self.directory / name
        result = finish(start(*self.train_arguments(run, *RUN, *overrides), ranks=ranks, fault=fault))
        return result.code, result.err, run

    def expect(self, code, name, fault, *overrides, words=(), ranks=0):
        got, errors, run = self.faulty(name, fault, *overrides, ranks=ranks)
        self.assertEqual(got, code, errors)
        for word in words:
            self.assertIn(word, errors)
        return run

    def assert_same(self, run, other):
        self.assertEqual(rows(run), rows(other))
        self.assertEqual([row["step"] for row in rows(run)], list(range(1, STEPS + 1)))
        self.assertTrue(self.state(run) == self.state(other), "the states differ")

    def assert_finite(self, run):
        exported = self.scratch()
        self.succeed("export", "-m", run, "-o", exported)
        for name, (dtype, _, content) in read_safetensors(exported / "model.safetensors").items():
            self.assertEqual(dtype, "F32")
            self.assertTrue(all(map(math.isfinite, struct.unpack(f"<{len(content) // 4}f", content))), name)


class NonFinite(GuardsTest):
    def test_is_skipped_by_all_ranks(self):
        """Whoever has it and however the optimiser is divided, killed in between or not: the same run."""
        one = self.expect(OK, "one", "nan@0:after_backward:7", words=[
            f"not finite at step 7: rank 0, gradient of {FIRST_TENSOR}", "no update was made"])
        self.assertEqual([row["step"] for row in rows(one) if row.get("skipped") == "not finite"], [7])
        self.assertEqual([row["grad_norm"] for row in rows(one)].index(None), 6)
        self.assertEqual([row["loss"] is None for row in rows(one)], [False] * STEPS)
        whole = self.train("whole", *RUN)
        self.assertEqual(rows(whole)[:6], rows(one)[:6])
        self.assertNotEqual(rows(whole)[7], rows(one)[7])
        four = self.expect(OK, "four", "inf@2:after_backward:7:5", words=["rank 2, gradient of"], ranks=4)
        self.assert_same(four, one)
        killed = self.expect(KILLED, "killed", "nan@1:after_backward:7,kill@0:step_begin:10",
                             "parallel.zero=ZERO_NONE", "checkpoint.asynchronous=false",
                             words=["rank 1, gradient of"], ranks=2)
        self.assertEqual(step_of(checkpoints(killed)[-1]), 8)
        self.expect(OK, "killed", "nan@1:after_backward:7", "parallel.zero=ZERO_NONE", ranks=2)
        self.assert_same(killed, one)

    def test_a_loss_alone_is_enough(self):
        """The gradients are finite, and the sequence's rank is named."""
        run = self.expect(OK, "loss", "nan@1:after_loss:5:2,inf@0:after_loss:9", ranks=2, words=[
            "not finite at step 5: rank 1, loss of sequence 6 of the batch", "not finite at step 9: rank 0, loss of "
            "sequence 0 of the batch"])
        self.assertEqual([row["step"] for row in rows(run) if "skipped" in row], [5, 9])
        self.assertEqual([row["step"] for row in rows(run) if row["loss"] is None], [5, 9])
        self.assertNotIn(None, [row["grad_norm"] for row in rows(run)])
        self.assert_finite(run)

    def test_too_many_in_a_row_end_the_run(self):
        run = self.expect(NUMERICAL, "row", "nan@1:after_backward:5-20:9000", words=[
            "not finite at step 10: rank 1, gradient of ", "6 steps in a row made no update", "guard.max_consecutive_skips = 5"],
            ranks=2)
        self.assertEqual([row["step"] for row in rows(run)], list(range(1, 10)))
        self.assertEqual(step_of(checkpoints(run)[-1]), 8)
        self.assert_finite(run)
        self.expect(NUMERICAL, "first", "nan@0:after_backward:5", "guard.max_consecutive_skips=0",
                    words=["not finite at step 5", "1 steps in a row made no update"])

    def test_the_count_is_resumed(self):
        """Two skips before the checkpoint of step 4, the third after it."""
        fault = "nan@0:after_backward:3-5"
        self.expect(OK, "resumed", fault, "guard.max_consecutive_skips=2", "train.steps=4",
                    "optimizer.decay_steps=14")
        self.expect(NUMERICAL, "resumed", fault, "guard.max_consecutive_skips=2", "optimizer.decay_steps=14",
                    words=["not finite at step 5", "3 steps in a row made no update"])


class Spikes(GuardsTest):
    FAULT = "scale@*:after_backward:10:8192"  # a power of two: the same norm on any number of ranks

    def test_are_trained_on_without_a_policy(self):
        run = self.expect(OK, "trained", self.FAULT)
        self.assertEqual([row for row in rows(run) if "skipped" in row], [])

    def test_are_skipped(self):
        policy = (*WINDOW, "guard.spike_policy=SKIP")
        one = self.expect(OK, "skip", self.FAULT, *policy, words=["spike at step 10", "no update was made"])
        self.assertEqual([row["step"] for row in rows(one) if row.get("skipped") == "spike"], [10])
        # The window goes through the checkpoint of step 8; on other numbers of ranks the same.
        killed = self.expect(KILLED, "skip-killed", f"{self.FAULT},kill@1:step_begin:9", *policy, ranks=2)
        self.expect(OK, "skip-killed", self.FAULT, *policy, ranks=2)
        self.assert_same(killed, one)

    def test_are_left_behind(self):
        policy = (*WINDOW, "guard.spike_policy=ROLLBACK")
        words = ["event=rollback spike at step 10", "event=rolled_back from_step=10 to_step=8 passed_over_steps=2"]
        one = self.expect(OK, "back", self.FAULT, *policy, words=words)
        self.assertEqual([(row["step"], row["from_step"]) for row in rows(one, "rollback")], [(9, 10)])
        # Killed after the rollback and before the next checkpoint, it comes to the spike again.
        killed = self.expect(KILLED, "back-killed", f"{self.FAULT},kill@0:step_begin:11", *policy, words=words, ranks=2)
        self.assertEqual(step_of(checkpoints(killed)[-1]), 8)
        self.expect(OK, "back-killed", self.FAULT, *policy, words=words, ranks=2)
        self.assertEqual(len(rows(killed, "rollback")), 1)
        self.assert_same(killed, one)

    def test_too_many_rollbacks_end_the_run(self):
        self.expect(NUMERICAL, "bounded", self.FAULT, *WINDOW, "guard.spike_policy=ROLLBACK", "guard.max_rollbacks=0",
                    words=["spike at step 10", "rolled back 0 times already (guard.max_rollbacks)"])
        self.expect(NUMERICAL, "nowhere", self.FAULT, *WINDOW, "guard.spike_policy=ROLLBACK",
                    "checkpoint.interval_steps=0", words=["nothing to roll back to"])


class Replicas(GuardsTest):
    def test_the_odd_rank_is_named(self):
        run = self.expect(REPLICAS_DIFFER, "flipped", "flip@2:after_update:5", "parallel.zero=ZERO_NONE",
                          "guard.digest_interval_steps=7", "checkpoint.interval_steps=0", ranks=4,
                          words=["replicas differ after step 7", FIRST_TENSOR, "on rank 2 (host ", "the other 3"])
        self.assertEqual(checkpoints(run), [])

    def test_nothing_is_saved_of_replicas_that_differ(self):
        """With ZeRO the next step's parameters come from their owners, so it is seen in the same step only."""
        run = self.expect(REPLICAS_DIFFER, "saved", "flip@1:after_update:8", ranks=2,
                          words=["replicas differ after step 8", "rank 0 (host ", "rank 1 (host ", "any other rank"])
        self.assertEqual([step_of(path) for path in checkpoints(run)], [4])
        self.expect(OK, "saved", "flip@1:after_update:12", "guard.digest_interval_steps=0", ranks=2)


class FaultPoints(GuardsTest):
    def test_a_slow_rank_is_named(self):
        code, errors, _ = self.faulty("slow", "sleep@1:step_begin:*:60", "train.steps=24", ranks=2)
        self.assertEqual(code, OK, errors)
        found = re.search(r"event=straggler rank=1 score=0\.(\d\d) .*step=(\d+)", errors)
        self.assertIsNotNone(found, errors)
        self.assertLess(int(found[1]), 75)
        self.assertLessEqual(int(found[2]), 20)

    def test_do_what_they_are_told(self):
        for fault, code in (("exit@1:in_all_reduce:3:9", 9), ("abort@0:step_begin:2", 134), ("throw@0:step_begin:2", 70)):
            with self.subTest(fault=fault):
                self.assertEqual(self.faulty(f"told-{code}", fault, ranks=2)[0], code)
        self.assertEqual(self.faulty("wrong", "nan@0")[0], 64)

    def test_the_program_has_none(self):
        result = subprocess.run([BINARY, *self.train_arguments(self.directory / "product", *RUN)],
                                env={**ENVIRONMENT, "FAULT": "exit@*:step_begin:1:9"}, capture_output=True, check=False)
        self.assertEqual(result.returncode, OK, result.stderr)


if __name__ == "__main__":
    unittest.main()

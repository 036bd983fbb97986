"""Sequences split over ranks: the run of whole ones to rounding, the same bits for every number of data ranks."""

import resource
import signal
import unittest

from harness import (OUT_OF_MEMORY, PEER_LOST, SMALL, USAGE, RunTest, checkpoints, curve, finish, pseudo_text, rows,
                     signal_ranks, start, ttt)

# 48 tokens are three mini-batches of 16: two ranks hold one and two of them.
RUN = (*SMALL, "train.steps=6", "optimizer.warmup_steps=2", "optimizer.decay_steps=6", "eval.interval_steps=3",
       "eval.num_windows=5", "checkpoint.interval_steps=3", "train.precision=FP64")
SPLIT = "parallel.sequence_ranks=2"
HEADS = "parallel.sequence_exchange=HEAD_EXCHANGE"


class SequenceTest(RunTest):
    def assert_close_run(self, run, golden):
        """In fp64: what six steps make of a few roundings of each gradient."""
        for kind in ("train", "eval"):
            self.assertEqual([row["step"] for row in rows(run, kind)], [row["step"] for row in rows(golden, kind)])
            for row, other in zip(rows(run, kind), rows(golden, kind)):
                self.assertAlmostEqual(row["loss"], other["loss"], delta=1e-10 * other["loss"])

    def evaluate(self, run, *arguments, ranks: int):
        """What is printed and written. In fp64, whose roundings are below the digits that are written."""
        output = self.scratch()
        out = self.succeed("eval", "-m", run, "--windows", 5, "--dtype", "f64", "-o", output, *arguments, ranks=ranks).out
        return out.replace(str(output), ""), [(output / file).read_text()
                                              for file in ("loss_by_position.csv", "inner_loss.csv")]


class SplitSequences(SequenceTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.golden = cls("scratch").train("golden", *RUN)
        cls.split = cls("scratch").train("split", *RUN, SPLIT, ranks=2)

    def test_whole_and_split_runs_agree(self):
        losses = [row["loss"] for row in rows(self.golden)]
        self.assertLess(losses[-1], losses[0] - 0.1, "it does not learn: equality would mean little")
        self.assert_close_run(self.split, self.golden)
        self.assertNotEqual(curve(self.split), curve(self.golden), "was it split?")

    def test_data_ranks_change_no_bit(self):
        self.assert_same_run(self.train("grid", *RUN, SPLIT, ranks=4), self.split)

    def test_head_exchange(self):
        heads = self.train("heads", *RUN, SPLIT, HEADS, ranks=2)
        self.assert_close_run(heads, self.golden)
        self.assert_same_run(self.train("heads-grid", *RUN, SPLIT, HEADS, ranks=4), heads)

    def test_attention(self):
        attention = (*RUN, "model.mixer=ATTENTION", "data.context_length=47")
        self.assert_close_run(self.train("attention-split", *attention, SPLIT, ranks=2),
                              self.train("attention", *attention))

    def test_recomputed_blocks_change_no_bit(self):
        self.assert_same_run(self.train("recomputed", *RUN, SPLIT, "train.recompute_blocks=true", ranks=2), self.split)

    def test_resumed_from_one_grid_on_another(self):
        run = self.train("resumed", *RUN, "train.steps=2")
        for steps, ranks, exchange in ((3, 2, ()), (4, 4, (SPLIT,)), (5, 2, (SPLIT, HEADS)), (6, 2, (SPLIT,))):
            self.train("resumed", *RUN, f"train.steps={steps}", *exchange, ranks=ranks)
        # Evaluations at the ends of the parts are more than the golden run has.
        self.assertEqual([row["num_ranks"] for row in rows(run, "run")], [1, 2, 4, 2, 2])
        for row, other in zip(rows(run), rows(self.golden), strict=True):
            self.assertAlmostEqual(row["loss"], other["loss"], delta=1e-10 * other["loss"])
        self.assertEqual(len(list(checkpoints(run)[-1].glob("rank-*.h5"))), 2, "a shard a rank")

    def test_resuming_another_grid_with_the_same_split_changes_no_bit(self):
        run = self.train("regridded", *RUN, SPLIT, "train.steps=3", ranks=4)
        self.train("regridded", *RUN, SPLIT, ranks=2)
        self.assert_same_run(run, self.split)

    def test_evaluation(self):
        lengths = ("--context", 20, 40)
        self.assertEqual(self.evaluate(self.golden, *lengths, "--sequence-ranks", 2, ranks=4),
                         self.evaluate(self.golden, *lengths, ranks=1))


class Documents(SequenceTest):
    """data.reset_at_bos: windows of 64 tokens are four mini-batches; documents have 2 to 150 tokens. Of four ranks
    a window's documents leave some without work."""

    RUN = (*RUN, "data.context_length=64", "data.reset_at_bos=true")
    FOUR = "parallel.sequence_ranks=4"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        source = cls.directory / "documents.jsonl"
        source.write_text("".join(f'{{"text": "{pseudo_text(40, n)[:1 + n * n % 149].strip()}"}}\n'
                                  for n in range(1, 200)))
        cls.tokens = cls.directory / "documents"
        cls("scratch").succeed("prepare", source, "-o", cls.tokens, "--validation-every", 5)
        cls.golden = cls("scratch").train("golden", *cls.RUN)

    def test_whole_and_shared_documents_agree(self):
        split = self.train("split", *self.RUN, SPLIT, ranks=2)
        self.assert_close_run(split, self.golden)
        self.assert_same_run(self.train("grid", *self.RUN, SPLIT, "train.recompute_blocks=true", ranks=4), split)
        without = self.train("without", *self.RUN, "data.reset_at_bos=false", "train.steps=1", "optimizer.warmup_steps=0")
        self.assertNotAlmostEqual(rows(without)[0]["loss"], rows(self.golden)[0]["loss"], places=6)

    def test_resumed_from_one_grid_on_another(self):
        """Windows in micro-batches of two: their documents are shared out together."""
        self.train("resumed", *self.RUN, self.FOUR, "train.steps=3", ranks=4)
        run = self.train("resumed", *self.RUN, SPLIT, HEADS, ranks=4)
        self.assert_close_run(run, self.golden)
        pairs = ("train.micro_batch_size=2", "parallel.virtual_shards=4")
        self.assert_close_run(self.train("pairs", *self.RUN, *pairs, SPLIT, ranks=2), self.train("whole-pairs", *self.RUN, *pairs))

    def test_evaluation(self):
        self.assertEqual(self.evaluate(self.golden, "--sequence-ranks", 4, "--micro-batch", 2, ranks=4),
                         self.evaluate(self.golden, ranks=1))


class LongContext(RunTest):
    """docs/parallelism.md has the same for 262,144 tokens."""

    LIMIT_BYTES = 800 << 20  # the libraries take some 300 MiB of it
    RUN = ("data.context_length=65536", "train.batch_size=1", "parallel.virtual_shards=1", "train.steps=1",
           "optimizer.warmup_steps=0", "data.validation=", "checkpoint.interval_steps=0", "train.num_threads=1")

    def train_limited(self, name: str, *overrides, ranks: int):
        def limit():
            resource.setrlimit(resource.RLIMIT_DATA, (self.LIMIT_BYTES, self.LIMIT_BYTES))
        run = self.directory / name
        return run, ttt(*self.train_arguments(run, *self.RUN, *overrides), ranks=ranks, preexec_fn=limit)

    def test_what_one_rank_cannot_hold_four_train(self):
        _, alone = self.train_limited("alone", ranks=1)
        self.assertEqual(alone.code, OUT_OF_MEMORY, alone.err)
        self.assertIn("out of memory", alone.err)
        self.assertIn("raise parallel.sequence_ranks", alone.err)
        run, split = self.train_limited("split", "parallel.sequence_ranks=4", ranks=4)
        self.assertEqual(split.code, 0, split.err)
        self.assertEqual([row["tokens"] for row in rows(run)], [65536])


class HungEvaluation(RunTest):
    def test_a_stopped_rank_is_named(self):
        """As patient as the run's own watchdog; two ranks hold each window together."""
        run = self.train("patient", *RUN, "train.steps=1", "optimizer.warmup_steps=0", "watchdog.silence_seconds=2")
        process = start("eval", "-m", run, "--context", *range(32, 2048, 16), "--sequence-ranks", 2, ranks=2)
        self.assertIn("context", process.stdout.readline())
        self.assertTrue(signal_ranks(process, signal.SIGSTOP, 1))
        result = finish(process, 60)
        self.assertEqual(result.code, PEER_LOST, result.err)
        self.assertRegex(result.err, r"event=hang .*rank 1 \(host .*\) silent for")


class Refusals(RunTest):
    def refuse(self, words, *overrides, ranks):
        """With one message from all ranks."""
        result = ttt(*self.train_arguments(self.directory / "refused", *RUN, *overrides), ranks=ranks)
        self.assertEqual(result.code, USAGE, result.err)
        for word in words:
            self.assertEqual(result.err.count(word), 1, result.err)
        self.assertFalse((self.directory / "refused").exists())

    def test_splits_that_do_not_fit(self):
        self.refuse(["parallel.sequence_ranks = 3: must divide the 4 ranks"], "parallel.sequence_ranks=3", ranks=4)
        self.refuse(["has 3 mini-batches of 16, fewer than one a rank"], "parallel.sequence_ranks=4", ranks=4)
        self.refuse(["must divide model.num_heads = 2 with HEAD_EXCHANGE"], "parallel.sequence_ranks=3", HEADS,
                    ranks=3)
        self.refuse(["attention has no state to pass"], SPLIT, "model.mixer=ATTENTION",
                    "parallel.sequence_exchange=STATE_PASSING", ranks=2)
        self.refuse(["mini_batch_size = 0 is one mini-batch"], SPLIT, "model.ttt.mini_batch_size=0", ranks=2)
        self.refuse(["has 3 mini-batches of 16, fewer than one a rank"], "parallel.sequence_ranks=4",
                    "data.reset_at_bos=true", ranks=4)
        self.refuse(["data.reset_at_bos = true: needs data.masked_target"], SPLIT, "data.reset_at_bos=true",
                    "data.masked_target=-1", ranks=2)
        self.refuse(["is less than the 2 data ranks"], SPLIT, "parallel.virtual_shards=1", ranks=4)

    def test_an_evaluation_that_cannot_be_split(self):
        run = self.train("run", *RUN, "train.steps=1", "optimizer.warmup_steps=0")
        result = ttt("eval", "-m", run, "--context", 16, "--sequence-ranks", 2, ranks=2)
        self.assertEqual(result.code, USAGE, result.err)
        self.assertEqual(result.err.count("has 1 mini-batches of 16"), 1, result.err)


if __name__ == "__main__":
    unittest.main()

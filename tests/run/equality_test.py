"""One seed, one result: numbers of ranks, of threads and recomputation change no bit of a run."""

import unittest

from harness import RunTest, checkpoints, curve, rows

TRANSFORMER = ("model.use_gate=false", "model.share_qk=false", "model.pre_conv=false")
SHORT = ("train.steps=6", "eval.interval_steps=3", "optimizer.warmup_steps=2", "optimizer.decay_steps=6",
         "train.num_threads=1")
TTT_MLP = ("model.mixer=TTT_MLP", "model.ttt.base_learning_rate=0.1")
INNER_WARMUP = ("optimizer.inner_warmup_init=0.1", "optimizer.inner_warmup_steps=4")


class Ranks(RunTest):
    def expect_same_on(self, ranks, name, *overrides):
        golden = self.train(f"{name}-1", *overrides)
        for count in ranks:
            with self.subTest(ranks=count):
                self.assert_same_run(self.train(f"{name}-{count}", *overrides, ranks=count), golden)
        return golden

    def test_one_two_and_four_ranks_give_the_same_bits(self):
        golden = self.expect_same_on((2, 4), "tiny", "train.num_threads=1")
        losses = [row["loss"] for row in rows(golden)]
        self.assertEqual(len(losses), 50)
        self.assertLess(losses[-1], losses[0] - 1, "it does not learn: equality would mean little")
        self.assertEqual([row["step"] for row in rows(golden, "eval")], [25, 50])

    def test_a_rank_for_every_virtual_shard(self):
        self.expect_same_on((8,), "eight", *SHORT)

    def test_ttt_mlp_with_inner_warmup(self):
        golden = self.expect_same_on((2,), "mlp", *SHORT, *TTT_MLP, *INNER_WARMUP)
        cold = self.train("mlp-cold", *SHORT, *TTT_MLP)
        self.assertNotEqual(curve(golden), curve(cold), "the inner warm-up has no effect")

    def test_ttt_mlp_on_the_transformer_backbone(self):
        self.expect_same_on((2,), "mlp-transformer", *SHORT, *TTT_MLP, *TRANSFORMER)

    def test_ttt_linear_on_the_transformer_backbone(self):
        self.expect_same_on((2,), "linear-transformer", *SHORT, *TRANSFORMER)

    def test_attention_on_both_backbones(self):
        self.expect_same_on((2,), "attention", *SHORT, "model.mixer=ATTENTION", *TRANSFORMER)
        self.expect_same_on((2,), "attention-mamba", *SHORT, "model.mixer=ATTENTION")

    def test_linear_attention(self):
        self.expect_same_on((2,), "linear-attention", *SHORT, "model.mixer=LINEAR_ATTENTION", *TRANSFORMER)


class HowGradientsTravel(RunTest):
    """ZeRO and overlap change no bit: of the curve, of the state, of a run resumed with others of them."""

    BUCKETS = (*SHORT, "parallel.bucket_elements=20000", "checkpoint.interval_steps=3", "checkpoint.keep_last=9")
    VARIANTS = [(f"parallel.zero={zero}", f"parallel.overlap={overlap}")
                for zero in ("ZERO_OPTIMIZER", "ZERO_NONE") for overlap in ("true", "false")]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.golden = cls("test_every_variant").train("golden", *cls.BUCKETS)

    def test_every_variant(self):
        for number, variant in enumerate(self.VARIANTS):
            for ranks in (2, 4) if number == 0 else (2,):
                with self.subTest(variant=variant, ranks=ranks):
                    self.assert_same_run(self.train(f"v{number}-{ranks}", *self.BUCKETS, *variant, ranks=ranks),
                                         self.golden)

    def test_resumed_with_others(self):
        run = self.directory / "resumed"
        for steps, ranks, variant in ((2, 4, self.VARIANTS[0]), (3, 2, self.VARIANTS[3]), (5, 8, self.VARIANTS[0]),
                                      (6, 0, self.VARIANTS[2])):
            self.succeed(*self.train_arguments(run, *self.BUCKETS, *variant, f"train.steps={steps}",
                                               "eval.interval_steps=0"), ranks=ranks)
        self.assertEqual(rows(run), rows(self.golden))
        self.assertTrue(self.state(run) == self.state(self.golden))

    def test_moments_lie_with_their_owners_only(self):
        """Every element is in one shard, and no rank has all of them."""
        run = self.train("owners", *self.BUCKETS, ranks=4)
        sizes = [path.stat().st_size for path in sorted(checkpoints(run)[-1].glob("rank-*.h5"))]
        whole = (checkpoints(self.golden)[-1] / "rank-00000.h5").stat().st_size
        self.assertEqual(len(sizes), 4)
        self.assertLess(max(sizes), whole / 2)


class OneRank(RunTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.golden = cls("test_two_threads").train("golden", *SHORT)

    def test_two_threads(self):
        self.assert_same_run(self.train("threads", *SHORT, "train.num_threads=2"), self.golden)

    def test_recomputed_blocks(self):
        self.assert_same_run(self.train("recomputed", *SHORT, "train.recompute_blocks=true"), self.golden)

    def test_no_launcher_and_a_launcher_with_one_rank(self):
        self.assert_same_run(self.train("launched", *SHORT, ranks=1), self.golden)

    def test_another_seed_gives_another_run(self):
        self.assertNotEqual(curve(self.train("seed", *SHORT, "seed=1")), curve(self.golden))

    def test_gradient_accumulation_is_close(self):
        """Sequences that share a pass share sums, which then round differently: close, not equal."""
        shards = "parallel.virtual_shards=4"
        one = curve(self.train("micro-1", *SHORT, shards, "train.micro_batch_size=1"))
        two = curve(self.train("micro-2", *SHORT, shards, "train.micro_batch_size=2"))
        self.assertEqual(len(one), len(two))
        for row, other in zip(one, two):
            self.assertEqual(row["step"], other["step"])
            self.assertAlmostEqual(row["loss"], other["loss"], delta=1e-5 * row["loss"])


if __name__ == "__main__":
    unittest.main()

"""Which windows a run sees: orders of others, mixtures, whole documents; resumed, and on any number of ranks."""

import unittest
from pathlib import Path

from harness import CORRUPT, MISMATCH, MISSING, SMALL, TINY, USAGE, RunTest, curve, pseudo_text, rows, sets, ttt

RUN = (*SMALL, "train.steps=6", "optimizer.warmup_steps=2", "optimizer.decay_steps=6", "checkpoint.interval_steps=3",
       "eval.interval_steps=3", "eval.num_windows=4")


class DataOrderTest(RunTest):
    def expect_same_after_resuming(self, name: str, *overrides) -> Path:
        """A run on one rank is the same on two that end half way and go on as one."""
        golden = self.train(f"{name}-golden", *RUN, *overrides)
        other = self.train(f"{name}-two", *RUN, *overrides, "train.steps=3", ranks=2)
        self.assertEqual(len(rows(other)), 3)
        self.train(f"{name}-two", *RUN, *overrides)
        self.assert_same_run(other, golden)
        return golden


class Orders(DataOrderTest):
    def order(self, name: str, windows) -> Path:
        path = self.directory / name
        path.write_text("\n".join(map(str, windows)))
        return path

    def test_an_order_is_replayed(self):
        plain = self.train("sequential", *RUN, "data.order=SEQUENTIAL")
        replayed = self.train("replayed", *RUN, f"data.order_file={self.order('forward', range(60))}")
        self.assertEqual(curve(replayed), curve(plain))
        backward = self.order("backward", reversed(range(60)))
        golden = self.expect_same_after_resuming("backward", f"data.order_file={backward}")
        self.assertNotEqual(curve(golden), curve(plain))
        flag = self.directory / "flag"
        self.succeed(*self.train_arguments(flag, *RUN), "--order", backward)
        self.assertEqual(curve(flag), curve(golden))

    def test_a_run_goes_on_with_the_order_that_it_began_with(self):
        order = self.order("changing", range(60))
        run = self.train("changing-run", *RUN, f"data.order_file={order}", "train.steps=3", "optimizer.warmup_steps=0")
        self.order("changing", [*range(40), *reversed(range(40, 60))])
        arguments = self.train_arguments(run, *RUN, f"data.order_file={order}", "optimizer.warmup_steps=0")
        result = ttt(*arguments)
        self.assertEqual(result.code, MISMATCH, result.err)
        self.assertIn(f"{order} is not what it was when the run began", result.err)
        self.order("changing", range(60))
        self.succeed(*arguments)
        self.assertEqual(len(rows(run)), 6)

    def test_what_is_no_order_is_refused(self):
        for name, windows, code, words in (
                ("short", range(47), USAGE, "47 samples; train.steps = 6 of train.batch_size = 8 need 48"),
                ("beyond", [*range(50), 10**9], CORRUPT, "position 50: window 1000000000 does not exist"),
                ("twice", [*range(50), 7], CORRUPT, "position 50: window 7 comes for the 2. time"),
                ("word", [*range(50), "x"], CORRUPT, 'word:51: "x" is no whole number')):
            with self.subTest(name):
                result = ttt(*self.train_arguments(self.scratch(), *RUN), "--order", self.order(name, windows))
                self.assertEqual(result.code, code, result.err)
                self.assertIn(words, result.err)
        self.assertEqual(ttt(*self.train_arguments(self.scratch(), *RUN), "--order", self.directory / "none").code, MISSING)


class Mixtures(DataOrderTest):
    def train_arguments(self, run: Path, *overrides, resume: str = "auto") -> list[str]:
        path = self.directory / "mixture.textproto"
        path.write_text(Path(TINY).read_text().replace('train: "runs/tokens/tiny"', "").replace(
            'validation: "runs/tokens/tiny"', "".join(f"""
              sources {{ name: "{name}" weight: {weight} train: "{self.tokens}" validation: "{self.tokens}" }}"""
                                                      for name, weight in (("books", 3), ("web", 1)))))
        return ["train", "--config", path, "--resume", resume, *sets(f"output_directory={run}", *overrides)]

    def test_sources_keep_their_shares(self):
        golden = self.expect_same_after_resuming("mixture")
        self.assertEqual([(row["tokens_books"], row["tokens_web"]) for row in rows(golden)],
                         [(48 * 6 * n, 48 * 2 * n) for n in range(1, 7)])
        last = rows(golden, "eval")[-1]
        self.assertEqual(last["loss_books"], last["loss_web"])  # their validation tokens are the same
        self.assertEqual(last["loss"], last["loss_books"])
        out = self.succeed("eval", "-m", golden, "--windows", 4).out
        self.assertEqual([line.split(" | ")[0] for line in out.splitlines()], ["books", "web"])
        out = self.succeed("inspect", self.directory / "mixture.textproto", "--samples", 8).out
        self.assertIn("books: 6 of 8 samples", out)
        self.assertIn("sample 7 | ", out)

    def test_sources_of_different_tokenizers_are_refused(self):
        corpora = [self.directory / f"pieces-{seed}" for seed in (1, 2)]
        for seed, corpus in enumerate(corpora):
            text = self.directory / f"text-{seed}.txt"
            text.write_text(pseudo_text(3000, seed))
            self.succeed("prepare", text, "-o", corpus, "--train-tokenizer", 300, "--validation-every", 1 << 20)
        config = self.directory / "tokenizers.textproto"
        for data in ("".join(f'sources {{ name: "{path.name}" train: "{path}" }} ' for path in corpora),
                     "".join(f'train: "{path}" ' for path in corpora)):
            config.write_text(Path(TINY).read_text().replace('train: "runs/tokens/tiny"', data))
            result = ttt("train", "--config", config, *sets("data.validation=", "model.vocab_size=300", *RUN,
                                                            f"output_directory={self.scratch()}"))
            self.assertEqual(result.code, CORRUPT, result.err)
            self.assertIn(f"{corpora[1]} was made with another tokenizer", result.err)

    def test_lists_and_single_sources_do_not_mix(self):
        for override, words in ((f"data.train={self.tokens}", "is given beside data.sources"),
                                ("data.order_file=x", "with data.sources there are several"),
                                ("data.sources.weight=2", '"sources" is a list')):
            result = ttt(*self.train_arguments(self.scratch(), *RUN, override))
            self.assertEqual(result.code, USAGE, result.err)
            self.assertIn(words, result.err)


class Documents(DataOrderTest):
    def test_windows_begin_at_documents(self):
        self.expect_same_after_resuming("documents", "data.windows=DOCUMENTS")
        out = self.succeed("inspect", self.tokens, "--window", 0, "--context-length", 48, "--documents").out
        self.assertIn("tokens 0 to 48", out)

    def test_documents_can_be_sequences_of_their_own(self):
        source = self.directory / "short.jsonl"
        source.write_text("".join(f'{{"text": "document {n} of many"}}\n' for n in range(400)))
        tokens = self.directory / "short"
        self.succeed("prepare", source, "-o", tokens, "--validation-every", 4)
        short = (f"data.train={tokens}", f"data.validation={tokens}")
        for windows in ("STRIDE", "DOCUMENTS"):
            golden = self.expect_same_after_resuming(f"reset-{windows}", *short, "data.reset_at_bos=true",
                                                     f"data.windows={windows}")
            plain = self.train(f"plain-{windows}", *RUN, *short, f"data.windows={windows}")
            self.assertNotEqual(curve(golden), curve(plain))
            self.assertEqual(len(self.succeed("eval", "-m", golden, "--windows", 4).out.splitlines()), 1)
            self.succeed("generate", "-m", golden, "-p", "doc", "-n", 4)


if __name__ == "__main__":
    unittest.main()

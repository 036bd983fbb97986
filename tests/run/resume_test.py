"""A run that is ended in any way and resumed on any number of ranks is the run that never ended."""

import json
import os
import random
import re
import shutil
import signal
import time
import unittest

from harness import (catches, CORRUPT, LOCKED, MISMATCH, OK, SMALL, SOURCE, STOPPED, USAGE, RunTest, checkpoints, curve, end, finish,
                     last_step, rows, signal_ranks, start, step_of, ttt, wait_until)

STEPS = 40
RUN = (*SMALL, f"train.steps={STEPS}", "optimizer.decay_steps=40", "checkpoint.interval_steps=5",
       "eval.interval_steps=10", "eval.num_windows=8", "log.interval_steps=20")
NUM_KILLS = int(os.environ.get("TTT_NUM_KILLS", 20))
# By default mpirun leaves the surviving ranks two seconds; most kills need not wait that long.
END_AT_ONCE = [("--mca", "odls_base_sigkill_timeout", "0")] * 9 + [()]


class ResumeTest(RunTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.golden = cls("scratch").train("golden", *RUN)

    def begin(self, run, *overrides, ranks=0, **options):
        process = start(*self.train_arguments(run, *RUN, *overrides), ranks=ranks, **options)
        self.addCleanup(end, process)
        return process

    def attempt(self, run, *overrides, ranks=0, **options):
        return ttt(*self.train_arguments(run, *RUN, *overrides, **options), ranks=ranks)

    def copy_golden(self, name):
        """Its files are the run's own: a change of one must not reach the golden run."""
        run = self.directory / name
        shutil.copytree(self.golden, run)
        return run

    def assert_refused(self, code, words, run, *overrides, **options):
        result = self.attempt(run, *overrides, **options)
        self.assertEqual(result.code, code, result.err)
        for word in words:
            self.assertIn(word, result.err)


class KilledRuns(ResumeTest):
    def kill_after(self, run, generator):
        """Starts or resumes on two ranks and kills one of them, between its start and a dozen steps on.
        False when the run ended first."""
        process = self.begin(run, ranks=2, launcher=generator.choice(END_AT_ONCE))
        target = last_step(run) // 5 * 5 + generator.randint(0, 12)
        wait_until(lambda: process.poll() is not None or last_step(run) >= target, f"step {target}")
        time.sleep(generator.uniform(0, 0.02))
        killed = signal_ranks(process, signal.SIGKILL, generator.randint(0, 1))
        result = finish(process)
        if not killed:
            self.assertEqual(result.code, OK, result.err)
        return killed and result.code != OK

    def test_killed_at_random_moments(self):
        generator = random.Random(2024)
        kills, runs = 0, []
        while kills < NUM_KILLS:
            run = self.directory / f"killed-{len(runs)}"
            runs.append(run)
            while kills < NUM_KILLS and last_step(run) < STEPS:
                kills += self.kill_after(run, generator)
        for run in runs:
            with self.subTest(run=run.name):
                self.assertEqual(self.attempt(run).code, OK)
                self.assert_same_run(run, self.golden)


class StoppedRuns(ResumeTest):
    def stop_at(self, run, step, send, ranks=0):
        """Stops a run that would not end by itself. On a busy machine the signal may come after the golden
        run's last step: then again."""
        for _ in range(5):
            process = self.begin(run, "checkpoint.interval_steps=0", "eval.interval_steps=0",
                                 "train.steps=100000", ranks=ranks)
            wait_until(lambda: process.poll() is not None or last_step(run) >= step, f"step {step}")
            send(process)
            result = finish(process)
            if last_step(run) < STEPS:
                break
            shutil.rmtree(run)
        return result

    def assert_stopped(self, result, run):
        self.assertEqual(result.code, STOPPED, result.err)
        self.assertIn("stopped on request", result.err)
        self.assertEqual([step_of(path) for path in checkpoints(run)], [last_step(run)])

    def assert_continues(self, run, ranks=0):
        """To the golden run's end. Validation takes no part: the stopped run had none before."""
        result = self.attempt(run, ranks=ranks)
        self.assertEqual(result.code, OK, result.err)
        self.assertEqual(rows(run), rows(self.golden))
        self.assertEqual(rows(run, "eval")[-1], rows(self.golden, "eval")[-1])
        self.assertTrue(self.state(run) == self.state(self.golden))

    def test_resumed_on_fewer_and_fewer_ranks(self):
        run = self.directory / "shrinking"
        for ranks, steps in ((4, 15), (2, 25), (1, STEPS)):
            result = self.attempt(run, f"train.steps={steps}", "eval.interval_steps=0", ranks=ranks)
            self.assertEqual(result.code, OK, result.err)
        self.assertEqual(rows(run), rows(self.golden))
        self.assertTrue(self.state(run) == self.state(self.golden))
        self.assertEqual([row["num_ranks"] for row in rows(run, "run")], [4, 2, 1])

    def test_a_signal_to_a_run_of_one_process(self):
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            with self.subTest(signal=number.name):
                run = self.directory / f"alone-{number.name}"
                self.assert_stopped(self.stop_at(run, 7, lambda process: process.send_signal(number)), run)
                self.assert_continues(run)

    def test_a_signal_to_one_rank_stops_all(self):
        run = self.directory / "one-rank"
        send = lambda process: self.assertTrue(signal_ranks(process, signal.SIGUSR1, 1))
        self.assert_stopped(self.stop_at(run, 3, send, ranks=2), run)
        self.assert_continues(run, ranks=2)

    def test_a_signal_to_the_launcher_reaches_the_ranks(self):
        run = self.directory / "launcher"
        send = lambda process: process.send_signal(signal.SIGUSR1)
        self.assert_stopped(self.stop_at(run, 3, send, ranks=2), run)
        self.assert_continues(run)

    def test_a_signal_in_an_evaluation_ends_it_and_the_resumed_run_makes_up_for_it(self):
        slow = ("eval.num_windows=100000", "train.steps=20", "eval.interval_steps=10")  # all windows
        whole, run = self.train("evaluated", *RUN, *slow), self.directory / "stopped-evaluation"
        for step in 10, 20:  # the last one too
            process = self.begin(run, *slow)
            wait_until(lambda: process.poll() is not None or last_step(run) >= step, f"step {step}")
            process.send_signal(signal.SIGUSR1)
            result = finish(process)
            self.assertEqual(result.code, STOPPED, result.err)
            self.assertEqual(step_of(checkpoints(run)[-1]), step)
            self.assertEqual(len(rows(run, "eval")), step // 10 - 1)
        self.assertEqual(self.attempt(run, *slow).code, OK)
        self.assert_same_run(run, whole)

    def test_a_signal_ends_eval_and_prepare(self):
        evaluation = start("eval", "-m", self.golden)
        self.addCleanup(end, evaluation)
        wait_until(lambda: evaluation.poll() is not None or catches(evaluation, signal.SIGTERM), "its handlers")
        evaluation.send_signal(signal.SIGTERM)
        result = finish(evaluation)
        self.assertEqual(result.code, STOPPED, result.err)
        self.assertIn("evaluation stopped on request", result.err)

        prepared = self.scratch()
        command = ("prepare", self.directory / "books", "-o", prepared, "--shard-tokens", 2000)
        process = start(*command)
        self.addCleanup(end, process)
        wait_until(lambda: process.poll() is not None or catches(process, signal.SIGTERM), "its handlers")
        process.send_signal(signal.SIGTERM)
        result = finish(process)
        self.assertEqual(result.code, STOPPED, result.err)
        self.assertIn("the same command goes on", result.err)
        self.assertFalse(prepared.exists())
        self.succeed(*command)

    def test_a_finished_run_has_nothing_left_to_do(self):
        run = self.copy_golden("finished")
        before = [(path.name, path.stat().st_mtime_ns) for path in checkpoints(run)]
        self.assertEqual(self.attempt(run).code, OK)
        self.assertEqual([(path.name, path.stat().st_mtime_ns) for path in checkpoints(run)], before)
        self.assert_same_run(run, self.golden)


class Refusals(ResumeTest):
    def damage(self, checkpoint, name="rank-00000.h5"):
        path = checkpoint / name
        with open(path, "r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 0x10]))

    def test_a_damaged_newest_checkpoint_is_passed_over(self):
        for name, damage in {"shard": self.damage,
                             "manifest": lambda path: self.damage(path, "manifest.textproto"),
                             "lost-shard": lambda path: (path / "rank-00000.h5").unlink(),
                             "cut-shard": lambda path: os.truncate(path / "rank-00000.h5", 4096)}.items():
            with self.subTest(damage=name):
                run = self.copy_golden(name)
                newest = checkpoints(run)[-1]
                damage(newest)
                result = self.attempt(run)
                self.assertEqual(result.code, OK, result.err)
                self.assertIn("passing over a damaged checkpoint", result.err)
                self.assertIn(newest.name, result.err)
                self.assertIn(f"step={STEPS - 5} ", result.err)
                self.assert_same_run(run, self.golden)

    def test_what_one_rank_finds_damaged_all_pass_over(self):
        """Each rank reads the shards that hold its part alone: of as many as saved them its own, of others several or a
        part of one."""
        saved = self.train("saved-by-two", *RUN, ranks=2)
        for name in ("rank-00000.h5", "rank-00001.h5"):
            for ranks in (1, 2, 4):
                with self.subTest(damaged=name, ranks=ranks):
                    run = self.directory / f"{name}-{ranks}"
                    shutil.copytree(saved, run)
                    newest = checkpoints(run)[-1]
                    self.damage(newest, name)
                    result = self.attempt(run, ranks=ranks)
                    self.assertEqual(result.code, OK, result.err)
                    self.assertIn(f"{newest / name} is damaged", result.err)
                    self.assert_same_run(run, self.golden)

    def test_without_an_intact_checkpoint_nothing_starts(self):
        run = self.copy_golden("all-damaged")
        for checkpoint in checkpoints(run):
            self.damage(checkpoint)
        self.assert_refused(CORRUPT, ["none of the 2 checkpoints", str(run)], run)
        self.assertEqual(curve(run), curve(self.golden))

    def test_a_checkpoint_named_by_hand_must_be_intact(self):
        run = self.copy_golden("by-hand")
        newest = checkpoints(run)[-1]
        self.damage(newest)
        self.assert_refused(CORRUPT, [str(newest), "is damaged"], run, resume=str(newest))

    def test_another_configuration_is_named(self):
        run = self.copy_golden("changed")
        self.assert_refused(MISMATCH, ["optimizer.learning_rate", "0.003", "0.5"], run, "optimizer.learning_rate=0.5")
        self.assert_refused(MISMATCH, ["seed"], run, "seed=3", ranks=2)
        self.assert_refused(MISMATCH, ["model.num_layers", "data.context_length"], run, "model.num_layers=2",
                            "data.context_length=32")
        self.assertEqual(curve(run), curve(self.golden))

    def test_what_decides_no_number_may_change(self):
        run = self.copy_golden("log-interval")
        result = self.attempt(run, "log.interval_steps=1", "name=other", "checkpoint.keep_last=1",
                              "train.num_threads=2", "train.recompute_blocks=true")
        self.assertEqual(result.code, OK, result.err)

    def test_a_live_run_keeps_others_out(self):
        run = self.directory / "locked"
        process = self.begin(run, "train.steps=100000")
        wait_until(lambda: process.poll() is not None or last_step(run) > 0, "the first step")
        self.assert_refused(LOCKED, [str(run), "in use", f"pid={process.pid}"], run)
        self.assertIsNone(process.poll(), "the live run ended")

    def test_resume_never_does_not_touch_checkpoints(self):
        run = self.copy_golden("never")
        self.assert_refused(USAGE, [str(run), "--resume is never"], run, resume="never")
        self.assertEqual(curve(run), curve(self.golden))


class InitialWeights(ResumeTest):
    def test_from_a_checkpoint_and_from_an_exported_model(self):
        exported = self.directory / "exported"
        self.succeed("export", "-m", self.golden, "-o", exported)
        # With a learning rate of 0 a step leaves the weights as they were.
        frozen = ("train.steps=1", "optimizer.learning_rate=0", "optimizer.end_learning_rate=0",
                  "optimizer.warmup_steps=0")
        saved_by_two = self.train("saved-by-two-ranks", *RUN, ranks=2)
        runs = [self.train(f"from-{source.name}-by-{ranks}", *RUN, *frozen, f"train.init_from={source}", ranks=ranks)
                for source in (checkpoints(self.golden)[-1], self.golden, exported, saved_by_two) for ranks in (0, 2)]
        for run in runs:
            with self.subTest(run=run.name):
                self.assertEqual(rows(run), rows(runs[0]))
                self.assertEqual([row["step"] for row in rows(run)], [1])
                self.assertEqual(rows(run, "eval")[-1]["loss"], rows(self.golden, "eval")[-1]["loss"])
                self.assertTrue(self.weights(run) == self.weights(self.golden))

    def test_what_the_new_run_has_otherwise_is_told(self):
        """Of what the shapes of tensors do not tell: it may be meant."""
        checkpoint = checkpoints(self.golden)[-1]
        start_from = (f"train.init_from={checkpoint}", "train.steps=1", "optimizer.warmup_steps=0")
        same = self.attempt(self.scratch(), *start_from)
        self.assertEqual((same.code, "event=init_from" in same.err), (OK, False), same.err)
        other = self.attempt(self.scratch(), *start_from, "model.rope_theta=500000", ranks=2)
        self.assertEqual(other.code, OK, other.err)
        self.assertEqual(other.err.count(f"event=init_from {checkpoint}: modified: model.rope_theta: 10000 -> 500000"), 1,
                         other.err)

    def test_another_tokenizer_is_told(self):
        """By the digests of its files: these two differ in a name that no tokenizer reads."""
        definition = json.loads((SOURCE / "tests/data/tokenizers/gpt2.json").read_text(encoding="utf-8"))
        first, told = None, []
        for name in ("first", "second"):
            file, tokens, run = self.directory / f"{name}.json", self.directory / f"tokens-{name}", self.scratch()
            file.write_text(json.dumps({**definition, "name": name}), encoding="utf-8")
            self.succeed("prepare", self.directory / "books", "-o", tokens, "--tokenizer", file)
            vocabulary = re.search(r"vocab_size: (\d+)", (tokens / "manifest.textproto").read_text())[1]
            result = self.attempt(run, "train.steps=1", "optimizer.warmup_steps=0", f"data.train={tokens}",
                                  "data.validation=", f"model.vocab_size={vocabulary}",
                                  *([f"train.init_from={first}"] if first else []))
            self.assertEqual(result.code, OK, result.err)
            told += re.findall(r"event=init_from .*: tokenizer: (\S+) \((\w{32})\) -> (\S+) \((\w{32})\)", result.err)
            first = first or run
        (before, before_digest, after, after_digest), = told
        self.assertEqual((before, after), (f"{checkpoints(first)[-1]}/tokenizer.json", f"{tokens}/tokenizer.json"))
        self.assertNotEqual(before_digest, after_digest)

    def test_the_rotary_pairing_is_the_new_run_s(self):
        """An exported model pairs halves; a run that pairs neighbours must get its rows reordered."""
        model = (*RUN, "model.mixer=ATTENTION", "model.use_gate=false", "model.share_qk=false",
                 "model.pre_conv=false", "model.attention.rope_pairing=INTERLEAVED", "model.tie_embeddings=false")
        run = self.train("neighbours", *model, "train.steps=5")
        exported = self.directory / "exported-neighbours"
        self.succeed("export", "-m", run, "-o", exported)
        again = self.train("from-neighbours", *model, "train.steps=1", "optimizer.learning_rate=0",
                           "optimizer.end_learning_rate=0", "optimizer.warmup_steps=0", f"train.init_from={exported}")
        self.assertEqual(rows(again, "eval")[-1]["loss"], rows(run, "eval")[-1]["loss"])


if __name__ == "__main__":
    unittest.main()

"""Every subcommand on a small trained model: what it prints, what it writes, and that its results agree."""

import csv
import html.parser
import json
import math
import re
import shutil
import struct
import subprocess
import unittest
import xml.etree.ElementTree

from harness import (MISSING, SMALL, SOURCE, TINY, RunTest, checkpoints, files_under, pseudo_text, read_safetensors,
                     rows, sets, stored_zstd, ttt, write_safetensors)

RUN = (*SMALL, "train.steps=30", "optimizer.decay_steps=30", "eval.num_windows=16", "checkpoint.interval_steps=15",
       "log.interval_steps=10", "data.masked_target=-1")
SUBCOMMANDS = ("prepare", "train", "eval", "generate", "import", "export", "inspect", "plan", "report", "probe",
               "probe loss", "probe layer", "probe generate", "probe train")
BOS, FIRST_BYTE = 1, 3  # of the byte tokenizer


def printed_losses(out: str) -> dict[int, float]:
    """Context length -> loss, of `ttt eval`."""
    return {int(context): float(loss)
            for context, loss in re.findall(r"context +(\d+) \| windows +\d+ \| loss ([\d.]+)", out)}


class CommandTest(RunTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.trained = cls("scratch").train("trained", *RUN)
        cls.final_loss = rows(cls.trained, "eval")[-1]["loss"]

    def eval(self, model, *arguments, **options) -> str:
        return self.succeed("eval", "-m", model, *arguments, **options).out


class Help(RunTest):
    def test_every_subcommand_has_help(self):
        self.assertIn("Exit codes", self.succeed("--help").out)
        for subcommand in SUBCOMMANDS:
            with self.subTest(subcommand=subcommand):
                out = self.succeed(*subcommand.split(), "--help").out
                self.assertIn("Options:", out)
                for line in out.splitlines():
                    self.assertNotRegex(line, r"^  (-\w,)?--[\w-]+ [A-Z]+ \[[^]]*\]\s*$", "an option without a word")

    def test_help_on_several_ranks_is_printed_once(self):
        self.assertEqual(self.succeed("train", "--help", ranks=2).out.count("--dry-run"), 1)

    def test_the_configuration_s_fields_are_printed(self):
        schema = self.succeed("train", "--help-config").out
        self.assertEqual(schema, (SOURCE / "configs/run.proto").read_text())

    def test_a_dry_run_reads_no_data_and_writes_nothing(self):
        before = files_under(self.directory)
        run, nowhere = self.directory / "dry", self.directory / "nowhere"
        for ranks in (0, 2):
            out = self.succeed("train", "--config", TINY, "--dry-run",
                               *sets(f"output_directory={run}", f"data.train={nowhere}", "optimizer.beta1=0.875"),
                               ranks=ranks).out
            self.assertIn("beta1: 0.875", out)
            self.assertIn("parameters           179620", out)
            self.assertIn("kept for backward", out)
            self.assertNotIn("as if every window were one", out)
        documents = self.succeed("train", "--config", TINY, "--dry-run", "--set", "data.reset_at_bos=true").out
        self.assertIn("as if every window were one", documents)
        cuda = self.succeed("train", "--config", TINY, "--dry-run", "--device", "cuda").out
        self.assertIn("libraries 0.062 GiB", cuda)
        self.assertEqual(files_under(self.directory), before)


class Plan(RunTest):
    MACHINE = SOURCE / "launch/machines/h100_node.textproto"

    def test_a_large_model_is_planned_and_a_grid_chosen(self):
        out = self.succeed("plan", "-c", SOURCE / "configs/books/ttt_linear_m_1_3b_32k.textproto",
                           "--set", "train.precision=BF16", "-m", self.MACHINE, "-n", "64").out
        for words in ("predicted step", "memory a rank", "sent a step", "chosen:", "goodput", "parallel.virtual_shards"):
            self.assertIn(words, out)

    def test_a_sweep_is_written(self):
        output = self.directory / "scaling"
        out = self.succeed("plan", "-c", TINY, "-m", self.MACHINE, "--sweep", "4", "-o", output).out
        self.assertEqual(out.count("ranks "), 3)
        with open(output / "scaling.csv", newline="") as file:
            self.assertEqual([row["ranks"] for row in csv.DictReader(file)], ["1", "2", "4"])
        xml.etree.ElementTree.parse(output / "scaling.svg")

    def test_this_machine_is_measured(self):
        machine = self.directory / "here.textproto"
        measured = self.succeed("plan", "-c", TINY, "--measure", "--write-machine", machine, "--as-configured",
                                "-n", "2").out
        again = self.succeed("plan", "-c", TINY, "-m", machine, "--as-configured", "-n", "2").out
        self.assertIn('name: "ttt_backward"', machine.read_text())
        self.assertEqual(measured, again)


class Prepare(RunTest):
    def prepare(self, name, *arguments):
        output = self.directory / name
        out = self.succeed("prepare", *arguments, "-o", output).out
        return output, [int(number) for number in re.findall(r"(\d+) (?:training|validation) tokens", out)]

    def jsonl(self, documents, field="text"):
        return "".join(json.dumps({"meta": {"n": n}, field: text}) + "\n" for n, text in enumerate(documents))

    def test_the_same_documents_in_every_format_give_the_same_shards(self):
        books = sorted((self.directory / "books").glob("*.txt"))
        text = self.jsonl(book.read_text() for book in books)
        lines, archive = self.directory / "books.jsonl", self.directory / "books-zst.jsonl.zst"
        lines.write_text(text)
        content = text.encode()
        if shutil.which("zstd"):
            archive.write_bytes(subprocess.run(["zstd", "-c"], input=content, capture_output=True, timeout=30,
                                               check=True).stdout)
        else:
            archive.write_bytes(b"".join(stored_zstd(content[i:i + 65536]) for i in range(0, len(content), 65536)))
        (shard,) = self.tokens.glob("train-*.h5")
        for source in (lines, archive):
            output, counts = self.prepare(f"from-{source.stem}", source, "--validation-every", 7)
            self.assertEqual((output / shard.name).read_bytes(), shard.read_bytes())
            self.assertEqual(sum(counts), sum(len(book.read_bytes()) + 2 for book in books))

    def test_a_field_of_another_name_and_validation_files(self):
        train, held_out = self.directory / "train.jsonl", self.directory / "held-out.txt"
        train.write_text(self.jsonl([pseudo_text(500, 1), "é"], field="body"))
        held_out.write_text(pseudo_text(300, 2))
        _, counts = self.prepare("body", train, "--validation", held_out, "--text-field", "body")
        self.assertEqual(counts[1], held_out.stat().st_size + 2)

    def test_threads_do_not_change_the_shards(self):
        for threads in (1, 3):
            self.prepare(f"threads-{threads}", self.directory / "books", "--threads", threads, "--shard-tokens", 100000)
        one, three = (self.directory / f"threads-{threads}" for threads in (1, 3))
        self.assertEqual(files_under(one), files_under(three))
        for name in files_under(one):
            self.assertEqual((one / name).read_bytes(), (three / name).read_bytes(), name)

    def test_progress_is_no_line_a_document(self):
        many = self.directory / "many.jsonl"
        many.write_text(self.jsonl("a few words" for _ in range(20000)))
        err = self.succeed("prepare", many, "-o", self.directory / "many").err
        self.assertLess(len(err.splitlines()), 5, err[:1000])

    def test_a_trained_tokenizer_goes_all_the_way(self):
        tokens, counts = self.prepare("pieces", self.directory / "books", "--train-tokenizer", 600,
                                      "--validation-every", 7)
        self.assertLess(sum(counts), sum(book.stat().st_size for book in (self.directory / "books").iterdir()) / 2)
        run = self.train("pieces-run", *RUN, "train.steps=5", "model.vocab_size=600", f"data.train={tokens}",
                         f"data.validation={tokens}")
        exported = self.directory / "pieces-exported"
        self.succeed("export", "-m", run, "-o", exported)
        self.assertEqual((exported / "tokenizer.model").read_bytes(), (tokens / "tokenizer.model").read_bytes())
        self.assertEqual(json.loads((exported / "tokenizer_config.json").read_text())["tokenizer_class"],
                         "LlamaTokenizer")
        texts = {self.succeed("generate", "-m", model, "-p", "Ba be", "-n", 12, "--seed", 4).out
                 for model in (run, exported)}
        self.assertEqual(len(texts), 1)
        self.assertTrue(texts.pop().startswith("Ba be"))


class Eval(CommandTest):
    def test_the_loss_is_the_run_s_last_on_any_number_of_ranks(self):
        for ranks in (0, 2, 3):
            with self.subTest(ranks=ranks):
                losses = printed_losses(self.eval(self.trained, "--windows", 16, ranks=ranks))
                self.assertEqual(losses, {48: float(f"{self.final_loss:.6f}")})

    def test_micro_batches_and_precision_change_it_by_rounding_only(self):
        for arguments in (("--micro-batch", 5), ("--dtype", "f64")):
            loss = printed_losses(self.eval(self.trained, "--windows", 16, *arguments))[48]
            self.assertAlmostEqual(loss, self.final_loss, delta=2e-5)

    def test_several_contexts(self):
        losses = printed_losses(self.eval(self.trained, "--context", 16, 48, 130, "--windows", 8))
        self.assertEqual(list(losses), [16, 48, 130])
        self.assertTrue(all(0 < loss < math.log(259) for loss in losses.values()), losses)

    def test_other_data_than_the_run_s(self):
        (shard,) = self.tokens.glob("train-*.h5")
        losses = printed_losses(self.eval(self.trained, "--data", shard, "--windows", 8))
        self.assertEqual(list(losses), [48])

    def test_curves_by_position(self):
        output = self.directory / "curves"
        loss = printed_losses(self.eval(self.trained, "--windows", 16, "-o", output))[48]
        with open(output / "loss_by_position.csv", newline="") as file:
            table = list(csv.DictReader(file))
        self.assertEqual([int(row["position"]) for row in table], list(range(48)))
        self.assertEqual({row["tokens"] for row in table}, {"16"})
        # Nothing is masked, so every position counts alike; 1e-6 is what is printed.
        self.assertAlmostEqual(sum(float(row["loss"]) for row in table) / 48, loss, delta=1e-6)
        for row in table:
            self.assertAlmostEqual(math.log(float(row["perplexity"])), float(row["loss"]), delta=1e-7)
        with open(output / "inner_loss.csv", newline="") as file:
            inner = list(csv.DictReader(file))
        self.assertEqual([(row["layer"], row["position"]) for row in inner], [("0", str(t)) for t in range(48)])
        self.assertTrue(all(float(row["loss_after_step"]) > 0 for row in inner))
        plots = sorted(path.name for path in output.glob("*.svg"))
        self.assertEqual(plots, ["inner_loss_layer_00.svg", "loss_by_context.svg", "loss_by_position.svg"])
        for plot in plots:
            root = xml.etree.ElementTree.parse(output / plot).getroot()
            self.assertTrue(root.tag.endswith("svg"))
            marks = [list(root.iter("{http://www.w3.org/2000/svg}" + kind)) for kind in ("path", "circle")]
            self.assertTrue(any(marks), f"{plot} has neither a curve nor a dot")

    def test_curves_of_a_model_without_inner_losses(self):
        run = self.train("attention", *RUN, "train.steps=2", "model.mixer=ATTENTION")
        self.eval(run, "--windows", 4, "-o", self.directory / "attention-curves")
        self.assertEqual(files_under(self.directory / "attention-curves"),
                         {"loss_by_context.csv", "loss_by_context.svg", "loss_by_position.csv", "loss_by_position.svg"})


class Generate(CommandTest):
    def generate(self, *arguments, model=None) -> str:
        return self.succeed("generate", "-m", model or self.trained, "-q", "--ignore-eos", *arguments).out

    def test_the_seed_decides_the_text(self):
        one, same, other = (self.generate("-p", "Ba", "-n", 60, "--seed", seed) for seed in (1, 1, 2))
        self.assertEqual(one, same)
        self.assertNotEqual(one, other)

    def test_greedy_needs_no_seed(self):
        texts = {self.generate("-p", "Ba", "-n", 40, *arguments)
                 for arguments in (("--temperature", 0), ("--temperature", 0, "--seed", 9), ("--top-k", 1))}
        self.assertEqual(len(texts), 1)

    def test_it_stops_at_the_asked_number_of_tokens(self):
        for count in (0, 1, 25):
            result = self.succeed("generate", "-m", self.trained, "-p", "Ba", "-n", count, "--temperature", 0,
                                  "--ignore-eos")
            self.assertEqual(len(result.out), len("Ba") + count + len("\n"))
            self.assertIn(f"generated {count} in", result.err)

    def test_the_prompt_may_be_a_file(self):
        prompt = self.directory / "prompt.txt"
        prompt.write_text("Ba bi")
        self.assertEqual(self.generate("--prompt-file", prompt, "-n", 20), self.generate("-p", "Ba bi", "-n", 20))

    def test_greedy_is_what_probe_generate_decodes(self):
        exported = self.directory / "exported"
        self.succeed("export", "-m", self.trained, "-o", exported)
        prompt = "Ba bi bo"
        ids = [BOS] + [FIRST_BYTE + byte for byte in prompt.encode()]
        source, output = self.directory / "prompt.safetensors", self.directory / "decoded.safetensors"
        write_safetensors(source, {"input_ids": ("I64", [1, len(ids)], struct.pack(f"<{len(ids)}q", *ids))})
        self.succeed("probe", "generate", "--model", exported, "--input", source, "--output", output, "--dtype", "f32",
                     "--max-new-tokens", 29)
        _, shape, content = read_safetensors(output)["generated_ids"]
        self.assertEqual(shape, [1, 30])
        decoded = bytes(token - FIRST_BYTE for token in struct.unpack("<30q", content)).decode()
        for model in (self.trained, exported):
            self.assertEqual(self.generate("-p", prompt, "-n", 30, "--temperature", 0, model=model),
                             prompt + decoded + "\n")


class Interchange(CommandTest):
    def test_exported_and_imported_again(self):
        exported, imported = self.directory / "exported", self.directory / "imported"
        self.succeed("export", "-m", self.trained, "-o", exported)
        self.assertEqual(files_under(exported), {"config.json", "generation_config.json", "model.safetensors",
                                                 "README.md", "configuration_ttt.py", "modeling_ttt.py"})
        config = json.loads((exported / "config.json").read_text())
        self.assertEqual((config["model_type"], config["hidden_size"], config["use_gate"]), ("ttt", 32, True))
        self.succeed("import", "-m", exported, "-o", imported, "--context", 48)
        loss = {48: float(f"{self.final_loss:.6f}")}
        windows = ("--windows", 16, "--data", self.tokens)
        self.assertEqual(printed_losses(self.eval(imported, *windows)), loss)
        self.assertEqual(printed_losses(self.eval(exported, *windows, "--context", 48)), loss)
        self.assertEqual(self.weights(imported), (exported / "model.safetensors").read_bytes())

    def test_bfloat16_is_half_the_size_and_nearly_the_same(self):
        full, half = self.directory / "full", self.directory / "half"
        self.succeed("export", "-m", self.trained, "-o", full)
        self.succeed("export", "-m", checkpoints(self.trained)[-1], "-o", half, "--bf16")
        sizes = [(path / "model.safetensors").stat().st_size for path in (full, half)]
        self.assertAlmostEqual(sizes[1] / sizes[0], 0.5, delta=0.05)
        loss = printed_losses(self.eval(half, "--windows", 16, "--data", self.tokens, "--context", 48))[48]
        self.assertAlmostEqual(loss, self.final_loss, delta=0.05)


class Inspect(CommandTest):
    def test_every_kind(self):
        exported = self.directory / "exported"
        self.succeed("export", "-m", self.trained, "-o", exported)
        array = self.directory / "tokens.npy"
        header = "{'descr': '<u2', 'fortran_order': False, 'shape': (7,), }".ljust(117) + "\n"
        array.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(14))
        for path, words in ((self.trained, ["checkpoint of step 30", "all digests agree"]),
                            (checkpoints(self.trained)[0], ["checkpoint of step 15", "hidden_size: 32"]),
                            (self.tokens, ["vocab_size: 259", "all digests agree"]),
                            (self.tokens / "train-00000.h5", ["vocabulary 259", "inside the vocabulary"]),
                            (array, ["7 tokens of 2 bytes"]),
                            (TINY, ['name: "tiny"', "# 179620 parameters"]),
                            (exported / "model.safetensors", ["model.embed_tokens.weight", "tensors"]),
                            (exported, ["mixer: TTT_LINEAR", "model.embed_tokens.weight"])):
            with self.subTest(path=path):
                out = self.succeed("inspect", path, "--verify").out
                for word in words:
                    self.assertIn(word, out)


class PageReader(html.parser.HTMLParser):
    """Counts plots and checks that tags close in order."""
    VOID = {"meta", "link", "br", "hr", "img", "input"}

    def __init__(self):
        super().__init__()
        self.open, self.plots, self.text = [], 0, ""

    def handle_starttag(self, tag, attrs):
        self.plots += tag == "svg"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text += data


class Report(CommandTest):
    def read(self, run) -> PageReader:
        page = PageReader()
        page.feed((run / "report.html").read_text())
        page.close()
        self.assertEqual(page.open, [])
        return page

    def test_a_run_writes_it_and_curves_are_added_later(self):
        run = self.directory / "reported"
        shutil.copytree(self.trained, run)
        first = self.read(run)
        self.assertGreaterEqual(first.plots, 3)
        self.assertIn("model.hidden_size32", first.text)  # cells of a table
        self.eval(run, "--windows", 8, "-o", run)
        self.assertIn("report.html", self.succeed("report", run).out)
        second = self.read(run)
        self.assertGreater(second.plots, first.plots)
        self.assertIn("Use of the context", second.text)
        self.assertIn("Inner loop", second.text)

    def test_runs_are_compared_in_one_plot(self):
        other = self.directory / "other"
        shutil.copytree(self.trained, other)
        rows = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
        kept = [json.dumps(row) for row in rows if row["kind"] != "eval"]
        (other / "metrics.jsonl").write_text("\n".join(kept) + "\n")
        plot = self.directory / "plot.svg"
        self.succeed("report", self.trained, other, "--compare", plot)
        text = plot.read_text()
        self.assertTrue(text.startswith("<svg"), text[:80])
        self.assertIn("Loss on held-out text", text)
        self.assertIn("(training)", text, "a run without validation shows its training loss")
        missing = ttt("report", self.directory / "nowhere", "--compare", plot)
        self.assertEqual((missing.code, "metrics.jsonl" in missing.err), (MISSING, True), missing.err)


if __name__ == "__main__":
    unittest.main()

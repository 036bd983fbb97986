"""Whatever is wrong with what a user gives is named, ends with the documented code and leaves nothing behind."""

import os
import resource
import shutil
import struct
import unittest
from pathlib import Path

import harness
from harness import (CORRUPT, IO, LOCKED, MISMATCH, MISSING, OUT_OF_MEMORY, PERMISSION, SMALL, SOURCE, TINY, USAGE,
                     RunTest, checkpoints, files_under, finish, read_safetensors, start, stored_zstd, ttt,
                     write_safetensors)

ONE_STEP = (*SMALL, "train.steps=1", "optimizer.warmup_steps=0", "eval.num_windows=2")
# What a run directory may hold after a refusal: the lock, and the log that says why.
TRACES = ("run.lock", "logs")


def npy(dtype: str, shape: tuple[int, ...], data: bytes) -> bytes:
    """A version 1.0 .npy file."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


class BadInput(RunTest):
    def write(self, name: str, content) -> Path:
        path = self.directory / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def refuse(self, code, words, *arguments, **options):
        """Refused with that code and all the words on the error stream; no file is new or gone."""
        before = files_under(self.directory)
        result = ttt(*arguments, **options)
        said = f"{arguments}\n{result.out}\n{result.err}"
        self.assertEqual(result.code, code, said)
        for word in words:
            self.assertIn(str(word), result.err, said)
        self.assertNotIn("internal error", result.err)
        new = {path for path in files_under(self.directory) - before
               if not path.startswith("refused") or not (path == "refused" or path.split("/")[1] in TRACES)}
        self.assertEqual((new, before - files_under(self.directory)), (set(), set()), said)
        shutil.rmtree(self.directory / "refused", ignore_errors=True)

    def refuse_run(self, code, words, *overrides, **options):
        self.refuse(code, words, *self.train_arguments(self.directory / "refused", *ONE_STEP, *overrides), **options)


class Configurations(BadInput):
    def refuse_config(self, words, text):
        path = self.write("wrong.textproto", text)
        self.refuse(USAGE, [path, *words], "train", "--config", path, "--dry-run")
        self.refuse(USAGE, [path, *words], "inspect", path)

    def test_a_misspelt_field(self):
        self.refuse_config([":3:", '"learning_rte"', 'did you mean "learning_rate"?'],
                           'name: "x"\noptimizer {\n  learning_rte: 0.1\n}\n')
        self.refuse_run(USAGE, ['"warmup_step"', 'did you mean "warmup_steps"?'], "optimizer.warmup_step=1")

    def test_a_device_that_is_not_there(self):
        for device, words in (("gpu", ["--device gpu", "auto, cpu or cuda"]), ("cuda", ["--device cpu"])):
            with self.subTest(device=device):
                arguments = self.train_arguments(self.directory / "nowhere", *ONE_STEP)
                self.refuse(USAGE, words, *arguments, "--device", device)
        arguments = self.train_arguments(self.directory / "nowhere", *ONE_STEP, "train.precision=FP64")
        self.refuse(USAGE, ["fp64", "CPU only"], *arguments, "--device", "cuda")

    def test_an_unknown_field(self):
        self.refuse_config([":1:", 'unknown field "zebra_crossing"'], "zebra_crossing: 1\n")

    def test_a_wrong_type(self):
        self.refuse_config([":2:", "many"], 'train {\n  steps: "many"\n}\n')
        self.refuse_run(USAGE, ["train.steps=many", "a whole number"], "train.steps=many")
        self.refuse_run(USAGE, ["model.use_gate=perhaps", "true or false"], "model.use_gate=perhaps")

    def test_an_unknown_value(self):
        self.refuse_config(["TTT_LINEA", "TTT_LINEAR, TTT_MLP, ATTENTION, LINEAR_ATTENTION"],
                           "model { mixer: TTT_LINEA }\n")

    def test_a_file_that_is_no_configuration(self):
        self.refuse_config([":1:"], "}}}\n")
        self.refuse_config([":2:", "not UTF-8"], bytes(range(1, 256)))

    def test_five_mistakes_are_five_messages(self):
        path = self.write("five.textproto", "sead: 1\nmodel { hiden_size: 8 num_layers: 0 }\n"
                                            "train { batch_size: -1 }\noptimizer { beta1: 2 }\n")
        self.refuse(USAGE, ["5 problems", f"{path}:1:", f"{path}:2:", "model.num_layers = 0", "train.batch_size = -1",
                            "optimizer.beta1 = 2"], "train", "--config", path)

    def test_heads_that_do_not_divide(self):
        self.refuse_run(USAGE, ["model.num_heads = 3", "must divide hidden_size = 32"], "model.num_heads=3")

    def test_batches_that_cannot_be_cut(self):
        self.refuse_run(USAGE, ["parallel.virtual_shards = 3", "must divide train.batch_size = 8"],
                        "parallel.virtual_shards=3")
        self.refuse_run(USAGE, ["train.micro_batch_size = 2", "must divide the 1 sequences"],
                        "train.micro_batch_size=2")

    def test_more_ranks_than_shards(self):
        self.refuse_run(USAGE, ["parallel.virtual_shards = 2", "4 ranks"], "parallel.virtual_shards=2", ranks=4)
        self.refuse_run(USAGE, ["parallel.virtual_shards = 8", "times a power of two"], ranks=3)

    def test_an_override_that_is_none(self):
        self.refuse_run(USAGE, ["field=value"], "train.steps")
        self.refuse_run(USAGE, ['"steps" has no fields inside'], "train.steps.more=1")


class CommandLines(BadInput):
    def test_plans_of_nothing(self):
        machine = SOURCE / "launch/machines/h100_node.textproto"
        wrong = self.write("machine.textproto", "memory_bytes: -1\nmatmul_flop: 1\n")
        for code, words, arguments in (
                (USAGE, ["--machine", "--measure"], []),
                (USAGE, ["--machine", "--measure"], ["-m", machine, "--measure"]),
                (USAGE, ["--write-machine"], ["-m", machine, "--write-machine", "refused"]),
                (USAGE, [wrong, ":2:", "matmul_flop"], ["-m", wrong]),
                (MISSING, ["nowhere"], ["-m", self.directory / "nowhere"]),
                (USAGE, ["--ranks", "-3"], ["-m", machine, "-n", "-3"]),
                (USAGE, ["3 (the ranks)", "must be"], ["-m", machine, "-n", "3", "--as-configured"]),
                (USAGE, ["train.precision = FP64"], ["-m", machine, "--set", "train.precision=FP64"])):
            with self.subTest(arguments=arguments):
                self.refuse(code, words, "plan", "-c", TINY, *arguments)

    def test_unknown_subcommands_and_flags(self):
        self.refuse(USAGE, ["subcommand"])
        self.refuse(USAGE, ["trane"], "trane")
        self.refuse(USAGE, ["--resum"], "train", "--resum", "auto")
        self.refuse(USAGE, ["--model"], "eval")
        self.refuse(USAGE, ["trane"], "trane", ranks=2)

    def test_missing_files(self):
        missing = self.directory / "missing"
        self.refuse(MISSING, [missing], "train", "--config", missing)
        self.refuse_run(MISSING, [missing], f"data.train={missing}")
        self.refuse_run(MISSING, [missing], f"data.validation={missing}", ranks=2)
        self.refuse_run(MISSING, [missing], f"train.init_from={missing}")
        for command in ("eval", "generate", "export", "import"):
            output = ["-o", self.directory / "out"] if command in ("export", "import") else []
            self.refuse(MISSING, [missing], command, "-m", missing, *output)
        for command in ("inspect", "report"):
            self.refuse(MISSING, [missing], command, missing)
        self.refuse(MISSING, [missing], "prepare", missing, "-o", self.directory / "out")
        self.refuse(MISSING, ["is no model", "manifest.textproto", "config.json"], "eval", "-m",
                    self.directory / "books")

    def test_no_data_at_all(self):
        self.refuse(USAGE, ["data.train", "ttt prepare"], "train", "--set", "model.num_layers=1", "--set",
                    "model.vocab_size=259", "--set", f"output_directory={self.directory / 'refused'}")

    def test_output_below_a_file(self):
        file = self.write("in-the-way", "")
        self.refuse(IO, [file / "run"], *self.train_arguments(file / "run", *ONE_STEP))
        self.refuse(IO, [file], "prepare", self.directory / "books", "-o", file / "tokens")

    def test_output_without_permission(self):
        closed = self.directory / "closed"
        closed.mkdir(mode=0o555)
        binary = self.directory / "ttt"
        shutil.copy(harness.BINARY, binary)
        os.chmod(self.directory, 0o755)
        user = {"user": 65534} if os.getuid() == 0 else {}  # root may write anywhere
        self.addCleanup(setattr, harness, "BINARY", harness.BINARY)
        harness.BINARY = str(binary)
        self.refuse(PERMISSION, [closed / "run"], *self.train_arguments(closed / "run", *ONE_STEP), cwd="/", **user)
        self.refuse(PERMISSION, [closed], "prepare", self.directory / "books", "-o", closed / "tokens", cwd="/",
                    **user)


class Texts(BadInput):
    def refuse_text(self, words, name, content, *arguments):
        path = self.write(name, content)
        self.refuse(CORRUPT, [path, *words], "prepare", path, "-o", self.directory / "out", *arguments)

    def test_an_empty_file(self):
        self.refuse_text(["is empty"], "empty.txt", "")

    def test_bytes_that_are_not_utf8(self):
        self.refuse_text(["byte 4", "0xff", "not UTF-8"], "latin.txt", b"abc \xff def")
        self.refuse_text([":2:", "not UTF-8"], "latin.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n')

    def test_a_broken_json_line(self):
        self.refuse_text([":3:", "JSON"], "broken.jsonl", '{"text": "a"}\n{"text": "b"}\n{"text": "c"\n{"text": "d"}\n')
        self.refuse_text([":1:", "an array, not an object"], "array.jsonl", '["a"]\n')

    def test_a_missing_text_field(self):
        self.refuse_text([":2:", 'no member "text"'], "other.jsonl", '{"text": "a"}\n{"body": "b"}\n')
        self.refuse_text([":1:", 'no member "body"'], "text.jsonl", '{"text": "a"}\n', "--text-field", "body")
        self.refuse_text([":1:", '"text" is a number, not a string'], "number.jsonl", '{"text": 5}\n')

    def test_a_truncated_or_damaged_archive(self):
        frame = stored_zstd(b'{"text": "a few words"}\n' * 50)
        self.refuse_text(["truncated"], "cut.jsonl.zst", frame[:-100])
        self.refuse_text(["damaged"], "noise.jsonl.zst", b"not zstd at all")

    def test_a_tokenizer_that_is_none(self):
        broken = self.write("broken.model", b"\x00\xff" * 50)
        books, out = self.directory / "books", self.directory / "out"
        for tokenizer in broken, self.write("empty.json", b"{}"):
            self.refuse(CORRUPT, [str(tokenizer)], "prepare", books, "-o", out, "--tokenizer", tokenizer)
        self.refuse(MISSING, ["none.model"], "prepare", books, "-o", out, "--tokenizer", self.directory / "none.model")

    def test_an_output_that_exists(self):
        self.refuse(LOCKED, [self.tokens, "exists"], "prepare", self.directory / "books", "-o", self.tokens)

    def test_a_limit_that_openblas_cannot_bear(self):
        """Without the look before its constructor the process would never begin."""
        for limit, mib in ((resource.RLIMIT_DATA, 100), (resource.RLIMIT_AS, 230)):  # of which libraries take some 160
            with self.subTest(limit=limit):
                lower = lambda: resource.setrlimit(limit, (mib << 20, mib << 20))
                result = finish(start("inspect", self.tokens, preexec_fn=lower), timeout=20)
                self.assertEqual(result.code, OUT_OF_MEMORY, result.err)
                self.assertIn("OpenBLAS takes 128 MiB a thread (threads: 1)", result.err)

    def test_bad_options(self):
        books, out = self.directory / "books", self.directory / "out"
        for option, value in (("--validation-fraction", 1.5), ("--validation-every", 1), ("--shard-tokens", 0)):
            with self.subTest(option=option):
                self.refuse(USAGE, [option[2:].replace("-", "_"), value], "prepare", books, "-o", out, option, value)


class Tokens(BadInput):
    def refuse_tokens(self, words, name, content):
        path = self.write(name, content)
        self.refuse_run(CORRUPT, [path, *words], f"data.train={path}")
        self.refuse_run(CORRUPT, [path, *words], f"data.train={path}", ranks=2)

    def test_a_token_beyond_the_vocabulary(self):
        tokens = [5] * 2000
        tokens[1234] = 259
        self.refuse_tokens(["token 259", "index 1234", "[0, 259)"], "beyond.npy",
                           npy("<u2", (2000,), struct.pack("<2000H", *tokens)))

    def test_arrays_that_are_not_tokens(self):
        self.refuse_tokens(["<f4"], "floats.npy", npy("<f4", (500,), bytes(2000)))
        self.refuse_tokens(["(50, 20)"], "matrix.npy", npy("<u2", (50, 20), bytes(2000)))
        self.refuse_tokens([], "short.npy", npy("<u2", (2000,), bytes(100)))
        self.refuse_tokens([], "noise.npy", b"noise" * 100)
        self.refuse_tokens([], "noise.h5", b"noise" * 100)

    def test_a_context_longer_than_the_data(self):
        self.refuse_run(USAGE, ["context_length 1000000", "1000001 tokens", str(self.tokens)],
                        "data.context_length=1000000")

    def test_a_corpus_of_another_vocabulary(self):
        self.refuse_run(CORRUPT, ["vocabulary of 259", "model.vocab_size = 200"], "model.vocab_size=200")

    def test_a_damaged_corpus(self):
        corpus = self.directory / "damaged"
        shutil.copytree(self.tokens, corpus)
        shard = corpus / "train-00000.h5"
        os.truncate(shard, shard.stat().st_size - 8)
        self.refuse_run(CORRUPT, [shard], f"data.train={corpus}")
        self.refuse(CORRUPT, [shard], "inspect", corpus, "--verify")


class Models(BadInput):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        test = cls("test_hugging_face_directories")
        cls.run_directory = test.train("run", *ONE_STEP)
        cls.exported = cls.directory / "exported"
        test.succeed("export", "-m", cls.run_directory, "-o", cls.exported)
        cls.tensors = read_safetensors(cls.exported / "model.safetensors")

    def exported_with(self, tensors) -> Path:
        directory = self.scratch()
        shutil.copytree(self.exported, directory)
        write_safetensors(directory / "model.safetensors", tensors)
        return directory

    def probe(self, model, content) -> list:
        tensors = self.write("input.safetensors", content)
        return ["probe", "loss", "--model", model, "--input", tensors, "--output", self.directory / "out.safetensors"]

    def test_hugging_face_directories(self):
        name = "model.layers.0.seq_modeling_block.W1"
        self.assertIn(name, self.tensors)
        dtype, shape, data = self.tensors[name]
        without = {key: value for key, value in self.tensors.items() if key != name}
        for words, tensors in (([name, "missing"], without),
                               ([name, "expected"], {**without, name: (dtype, shape[:-1] + [shape[-1] // 2],
                                                                       data[:len(data) // 2])}),
                               (["surplus", "not in the model"], {**self.tensors, "surplus": ("F32", [1], bytes(4))}),
                               ([name, "I32"], {**without, name: ("I32", shape, data)})):
            with self.subTest(words=words):
                model = self.exported_with(tensors)
                self.refuse(CORRUPT, [model, *words], "generate", "-m", model, "-p", "a")
                self.refuse(CORRUPT, [model, *words], "import", "-m", model, "-o", self.directory / "refused")

    def test_configurations_of_hugging_face_directories(self):
        for words, text in ((["config.json", "vocab_size"], '{"model_type": "ttt"}'),
                            (["config.json", "model_type", "gpt2"], '{"model_type": "gpt2"}'),
                            (["config.json"], '{"model_type": ')):
            with self.subTest(text=text):
                model = self.exported_with(self.tensors)
                (model / "config.json").write_text(text)
                self.refuse(CORRUPT, words, "eval", "-m", model, "--data", self.tokens)

    def test_safetensors_with_a_lying_header(self):
        header = b'{"input_ids":{"dtype":"I64","shape":[1,8],"data_offsets":[0,64]}}'
        huge = header.replace(b"[1,8]", b"[1,8000000000000000000]")
        for content in (struct.pack("<Q", len(header)) + header + bytes(32), struct.pack("<Q", 2**60) + header,
                        struct.pack("<Q", len(huge)) + huge + bytes(64), b"", b"\x01", header):
            with self.subTest(content=content[:16]):
                self.refuse(CORRUPT, ["input.safetensors"], *self.probe(self.exported, content))
        self.refuse(CORRUPT, ["input.safetensors"], "inspect", self.directory / "input.safetensors")

    def test_tensors_a_probe_cannot_use(self):
        def ids(values, dtype="I64", name="input_ids"):
            return {name: (dtype, [1, len(values)], struct.pack(f"<{len(values)}q", *values))}
        path = self.directory / "probe.safetensors"
        for words, tensors in ((["labels"], ids([1] * 8)), (["input_ids"], ids([1] * 8, name="labels")),
                               (["input_ids", "token 259"], {**ids([259] * 8), **ids([1] * 8, name="labels")})):
            with self.subTest(words=words):
                write_safetensors(path, tensors)
                self.refuse(CORRUPT, words, *self.probe(self.exported, path.read_bytes()))

    def test_initial_weights_of_another_model(self):
        checkpoint = checkpoints(self.run_directory)[-1]
        self.refuse_run(MISMATCH, [checkpoint, "model.embed_tokens.weight"], f"train.init_from={checkpoint}",
                        "model.hidden_size=64")
        self.refuse_run(MISMATCH, ["model.layers.1."], f"train.init_from={checkpoint}", "model.num_layers=2", ranks=2)
        self.refuse_run(CORRUPT, [self.exported, "do not fit the model", "model.embed_tokens.weight"],
                        f"train.init_from={self.exported}", "model.hidden_size=64")

    def test_a_damaged_checkpoint(self):
        run = self.scratch()
        shutil.copytree(self.run_directory, run)
        shard = checkpoints(run)[-1] / "rank-00000.h5"
        os.truncate(shard, shard.stat().st_size // 2)
        self.refuse(CORRUPT, [shard], "eval", "-m", run)
        self.refuse(CORRUPT, [shard], "export", "-m", run, "-o", self.directory / "out")
        self.refuse(CORRUPT, [shard], "inspect", run, "--verify")

    def test_sampling_options(self):
        for option, value in (("--temperature", -1), ("--temperature", "nan"), ("--top-p", 0), ("--top-p", 1.5),
                              ("--top-k", -1), ("--max-new-tokens", -1)):
            with self.subTest(option=option, value=value):
                self.refuse(USAGE, [option, "must"], "generate", "-m", self.run_directory, f"{option}={value}")
        self.refuse(USAGE, ["--prompt"], "generate", "-m", self.run_directory, "-p", "a", "--prompt-file", "b")

    def test_evaluation_options(self):
        self.refuse(USAGE, ["--dtype", "f32 or f64"], "eval", "-m", self.run_directory, "--dtype", "f16")
        self.refuse(USAGE, ["--context 0", "positive"], "eval", "-m", self.run_directory, "--context", 0)
        self.refuse(USAGE, ["--windows"], "eval", "-m", self.run_directory, "--windows", -1)
        self.refuse(USAGE, ["--inner-windows"], "eval", "-m", self.run_directory, "--inner-windows", 0)

    def test_models_that_cannot_be_exported(self):
        for field, overrides in (("model.mixer", ["model.mixer=LINEAR_ATTENTION"]),
                                 ("model.ttt.token_scale", ["model.ttt.token_scale=ONE"]),
                                 ("model.use_gate", ["model.mixer=ATTENTION"])):
            with self.subTest(field=field):
                run = self.train(field, *ONE_STEP, *overrides)
                self.refuse(USAGE, [field, "no Hugging Face counterpart"], "export", "-m", run, "-o",
                            self.directory / "out")

    def test_outputs_below_a_file(self):
        below = self.write("a-file", "text") / "out"
        self.refuse(IO, [below], "export", "-m", self.run_directory, "-o", below)
        self.refuse(IO, [below], "import", "-m", self.exported, "-o", below)
        self.refuse(IO, [below], "eval", "-m", self.run_directory, "--windows", 1, "-o", below)

    def test_outputs_that_exist(self):
        self.refuse(LOCKED, [self.exported, "not empty"], "export", "-m", self.run_directory, "-o", self.exported)
        self.refuse(LOCKED, [self.run_directory], "import", "-m", self.exported, "-o", self.run_directory)


if __name__ == "__main__":
    unittest.main()

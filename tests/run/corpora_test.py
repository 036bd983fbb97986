"""Miniatures of the Pile, SlimPajama and Books3 in their containers and with their quirks, through `ttt prepare`."""

import gzip
import io
import json
import random
import re
import shutil
import struct
import subprocess
import tarfile
import time
import unittest
from pathlib import Path

from harness import (CORRUPT, OK, USAGE, RunTest, end, files_under, pseudo_text, start, stored_zstd, ttt)

BOS, EOS = 1, 2
ONE_LINE = ["Plain text of a page.", "", "tab\tand  two spaces ", "literal </s> and <s> and <unk>", "a\0b", "naïve café 你好 😀",
            "carriage\rreturn", "\u2581 U+2581"]


def line(text: str, **meta) -> str:
    return json.dumps({"text": text, "meta": meta}) + "\n"


def frames(content: bytes, size: int = 50000) -> bytes:
    """Many zstd frames, which cut lines anywhere."""
    return b"".join(stored_zstd(content[i:i + size]) for i in range(0, len(content), size))


def write_pile(directory: Path) -> list[str]:
    """Two files of 130 documents; returns the texts in order."""
    (directory / "train").mkdir(parents=True)
    texts = []
    for file in range(2):
        lines = []
        for number in range(130):
            text = ONE_LINE[number % 20] if number % 20 < len(ONE_LINE) else pseudo_text(120, number).strip()
            if number == 77 and file == 0:
                text = pseudo_text(220000, 5).strip()  # over a megabyte
            texts.append(text)
            lines.append(line(text, pile_set_name=("Pile-CC", "Books3", "Github")[number % 3]))
        (directory / f"train/{file:02}.jsonl.zst").write_bytes(frames("".join(lines).encode()))
    return texts


class CorporaTest(RunTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        result = ttt("prepare", cls.directory / "books", "-o", cls.directory / "pieces", "--train-tokenizer", 500)
        if result.code != OK:
            raise AssertionError(result.err)
        cls.model = cls.directory / "pieces/tokenizer.model"

    def prepare(self, *arguments, ranks: int = 0, code: int = OK):
        """The output directory and what was printed."""
        output = self.scratch()
        result = ttt("prepare", *arguments, "-o", output, "--validation-fraction", 0, ranks=ranks)
        self.assertEqual(result.code, code, result.err)
        return output, result

    def token_ids(self, output: Path) -> list[int]:
        count = int(re.search(r"train_tokens: (\d+)", (output / "manifest.textproto").read_text())[1])
        out = self.succeed("inspect", output, "--window", 0, "--context-length", count - 1, "--ids").out
        return [int(word) for word in out.splitlines()[-1].split()]

    def documents(self, output: Path) -> list[list[int]]:
        """The ids between each BOS and EOS."""
        found = []
        for token in self.token_ids(output):
            if token == BOS:
                found.append([])
            elif token != EOS:
                found[-1].append(token)
        return found

    def spm_encode(self, texts: list[str]) -> list[list[int]]:
        """What SentencePiece's own program makes of texts of one line."""
        out = subprocess.run(["spm_encode", f"--model={self.model}", "--output_format=id"], timeout=60, check=True,
                             input="".join(text + "\n" for text in texts).encode(), capture_output=True).stdout
        return [[int(word) for word in row.split()] for row in out.decode().split("\n")[:-1]]


class Pile(CorporaTest):
    def test_tokens_are_those_of_spm_encode_document_by_document(self):
        texts = write_pile(self.directory / "pile")
        output, result = self.prepare(self.directory / "pile", "--tokenizer", self.model)
        documents, expected = self.documents(output), self.spm_encode(texts)
        self.assertEqual(len(documents), len(texts))
        for text, ours, theirs in zip(texts, documents, expected):
            self.assertEqual(ours, theirs, text[:60])
        self.assertIn("subset Books3", result.out)
        report = json.loads((output / "prepare.json").read_text())
        self.assertEqual(sum(subset["documents"] for subset in report["subsets"].values()), len(texts))
        self.assertEqual(report["text_bytes"], sum(len(text.encode()) for text in texts))
        self.assertIn("<svg", (output / "lengths.svg").read_text())

    def test_literal_control_tokens_can_be_parsed(self):
        source = self.directory / "literal.jsonl"
        source.write_text(line("a </s>b"))
        output, _ = self.prepare(source, "--tokenizer", self.model, "--parse-special")
        first, second = self.spm_encode(["a ", "b"])
        self.assertEqual(self.token_ids(output), [BOS, *first, EOS, *second, EOS])
        self.assertIn("parse_special: true", (output / "manifest.textproto").read_text())

    def test_subsets_samples_and_lengths(self):
        source = self.directory / "subsets.jsonl"
        source.write_text("".join(line(f"text {n}", pile_set_name="AB"[n % 2]) for n in range(400)))
        output, result = self.prepare(source, "--subset", "A=1")
        self.assertEqual(len(self.documents(output)), 200)
        self.assertIn("left out: 200 documents: of another subset", result.out)
        output, _ = self.prepare(source, "--subset", "A", "--subset", "*=0.25")
        self.assertTrue(225 < len(self.documents(output)) < 275)
        self.prepare(source, "--subset", "A=half", code=USAGE)
        output, result = self.prepare(source, "--min-bytes", 7, "--max-bytes", 7)
        self.assertEqual(len(self.documents(output)), 90)

    def test_broken_lines_end_the_run_or_are_counted(self):
        source = self.directory / "broken.jsonl"
        good = line("good", pile_set_name="Pile-CC")
        source.write_bytes(b"".join([good.encode(), b'{"text": "\\ud800"}\n', b"\n", b'{"text": "\xff"}\n', good.encode()]))
        _, result = self.prepare(source, code=CORRUPT)
        self.assertIn(f"{source}:2: byte {len(good) + 16}", result.err)
        output, result = self.prepare(source, "--skip-rejected")
        self.assertEqual(self.token_ids(output), 2 * [BOS, *(byte + 3 for byte in b"good"), EOS])
        report = json.loads((output / "prepare.json").read_text())
        self.assertEqual(report["rejected"], {"broken JSON": 2, "not UTF-8": 1})
        self.assertIn(f"{source}:4", report["examples"][2])
        self.assertIn("rejected: 2: broken JSON", result.out)


class DebianTexts(CorporaTest):
    """Real text that every Debian has: licences, and the copyright files of the packages."""

    def test_tokens_are_those_of_spm_encode_document_by_document(self):
        files = sorted(Path("/usr/share/common-licenses").glob("*")) + sorted(Path("/usr/share/doc").glob("*/copyright"))[:100]
        texts = [path.read_bytes().decode(errors="replace").replace("\0", "") for path in files]
        lines = sorted({row for text in texts for row in text.split("\n")})[::10]
        lines += [text.replace("\n", " ") for text in texts[:20]]  # whole licences
        self.assertGreater(len(lines), 500)
        self.assertGreater(max(map(len, lines)), 30000)
        lines.append(" ".join(texts).replace("\n", " ")[:200000])
        tree = self.directory / "debian"
        tree.mkdir()
        for number, text in enumerate(texts):
            (tree / f"{number}.txt").write_text(text, newline="")
        trained, _ = self.prepare(tree, "--train-tokenizer", 1000)
        self.model = trained / "tokenizer.model"
        expected = self.spm_encode(lines)
        content = "".join(map(line, lines)).encode()
        for name, packed in (("a.jsonl.gz", gzip.compress(content, 1)), ("b.jsonl.zst", frames(content))):
            source = self.directory / name
            source.write_bytes(packed)
            output, _ = self.prepare(source, "--tokenizer", self.model)
            self.assertEqual(self.documents(output), expected, name)


class SlimPajama(CorporaTest):
    def test_many_small_files_at_any_depth_on_any_number_of_ranks(self):
        source = self.directory / "slim"
        texts = []
        for chunk in range(2):
            folder = source / f"train/chunk{chunk + 1}"
            folder.mkdir(parents=True)
            for number in range(9):
                texts.append(pseudo_text(200, 10 * chunk + number).strip())
                content = line(texts[-1], redpajama_set_name="RedPajamaC4") + line(texts[0], redpajama_set_name="RedPajamaWikipedia")
                (folder / f"example_train_{number}.jsonl.zst").write_bytes(frames(content.encode(), 700))
        arguments = (source, "--tokenizer", self.model, "--part-bytes", 5000, "--shard-tokens", 3000, "--remove-duplicates")
        one, _ = self.prepare(*arguments, "--threads", 1)
        self.assertEqual(self.documents(one), self.spm_encode(texts))
        for ranks, threads in ((1, 2), (2, 1), (3, 2)):
            other, _ = self.prepare(*arguments, "--threads", threads, ranks=ranks)
            self.assertEqual(files_under(other), files_under(one))
            for name in files_under(one):
                self.assertEqual((other / name).read_bytes(), (one / name).read_bytes(), f"{ranks} ranks: {name}")


class Books3(CorporaTest):
    def test_books_are_read_from_the_archive(self):
        texts = {f"books3/the-eye/{name}.epub.txt": pseudo_text(3000, seed).strip() for seed, name in enumerate("zaq")}
        source = self.directory / "books3.tar.gz"
        with tarfile.open(source, "w:gz") as archive:
            for name, text in texts.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text)
                archive.addfile(entry, io.BytesIO(text.encode()))
            entry = tarfile.TarInfo("../../escape.txt")
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
        _, result = self.prepare(source, "--tokenizer", self.model, code=CORRUPT)
        self.assertIn("a symbolic link", result.err)
        before = files_under(self.directory)
        output, _ = self.prepare(source, "--tokenizer", self.model, "--skip-rejected")
        self.assertEqual(self.documents(output), self.spm_encode(list(texts.values())))
        made = {name for name in files_under(self.directory) - before if not name.startswith(output.name)}
        self.assertEqual(made, set())


class GoingOn(CorporaTest):
    def test_ten_kills_change_no_byte(self):
        source = self.directory / "work.jsonl"
        source.write_text("".join(line(pseudo_text(300, n), pile_set_name="Pile-CC") for n in range(1200)))
        arguments = ("prepare", source, "--tokenizer", self.model, "--threads", 2, "--shard-tokens", 40000,
                     "--validation-fraction", 0.05)
        whole, output = self.scratch(), self.scratch()
        begin = time.monotonic()
        self.succeed(*arguments, "-o", whole)
        generator = random.Random(11)
        longest = 0.9 * (time.monotonic() - begin)
        kills = 0
        while kills < 10:
            process = start(*arguments, "-o", output)
            time.sleep(generator.uniform(0.05, longest))
            finished = process.poll() is not None
            process.kill()
            end(process)
            if finished:
                self.assertEqual(process.returncode, OK)
            if output.exists():  # whole, whenever the kill came
                self.same(output, whole)
                self.assertIn("already prepared", self.succeed(*arguments, "-o", output).out)
                shutil.rmtree(output)
                shutil.rmtree(f"{output}.partial", ignore_errors=True)
            kills += not finished
        self.succeed(*arguments, "-o", output)
        self.same(output, whole)
        self.assertFalse(Path(f"{output}.partial").exists())

    def same(self, output: Path, whole: Path) -> None:
        self.assertEqual(files_under(output), files_under(whole))
        for name in files_under(whole):
            self.assertEqual((output / name).read_bytes(), (whole / name).read_bytes(), name)


class Inspect(CorporaTest):
    def test_windows_show_boundaries_and_masks(self):
        source = self.directory / "two.jsonl"
        source.write_text(line("abc") + line("dé"))
        output, _ = self.prepare(source)
        out = self.succeed("inspect", output, "--window", 0, "--context-length", 8).out
        self.assertIn("window 0 of 1: tokens 0 to 8, 1 of 8 targets masked", out)
        self.assertIn("[BOS at 0]abc[EOS at 4][target 4 masked][BOS at 5]d", out)
        ids = self.succeed("inspect", output, "--window", 1, "--context-length", 4, "--ids").out.splitlines()[-1]
        self.assertEqual(ids, "2 1 103 198 172")
        self.assertIn("window 3", ttt("inspect", output, "--window", 3, "--context-length", 8).err)
        lengths = self.succeed("inspect", output, "--lengths").out
        self.assertRegex(lengths, r" 4 to 7 +2 #{50}\n")

    def test_arrays_are_found_below_the_directory_that_is_named(self):
        folder = self.directory / "jax/tokenizer_name-a/b"
        folder.mkdir(parents=True)
        header = "{'descr': '<u2', 'fortran_order': False, 'shape': (4,), }".ljust(117) + "\n"
        (folder / "train.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", 118) + header.encode() + b"\1\0\5\0\6\0\2\0")
        out = self.succeed("inspect", self.directory / "jax", "--window", 0, "--context-length", 3, "--ids").out
        self.assertEqual(out.splitlines()[-1], "1 5 6 2")

    def test_sets_are_compared_token_by_token(self):
        raw = self.directory / "a.bin"
        raw.write_bytes(b"\1\0\5\0\2\0")
        same, other = self.directory / "same.bin", self.directory / "other.bin"
        same.write_bytes(b"\1\0\0\0\5\0\0\0\2\0\0\0")
        other.write_bytes(b"\1\0\6\0\2\0")
        self.assertIn("all 3 tokens are equal", self.succeed("inspect", f"{raw}:u16", "--compare", f"{same}:u32").out)
        result = ttt("inspect", f"{raw}:u16", "--compare", f"{other}:u16")
        self.assertEqual(result.code, CORRUPT)
        self.assertIn("token 1 differs: 5 and 6", result.out)


if __name__ == "__main__":
    unittest.main()

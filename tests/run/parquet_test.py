"""Parquet files: the same shards as of the same documents in JSON lines, and what is refused. Needs Python's pyarrow to
write them."""

import json
import random
import resource
import sys
import time
import unittest
from unittest import mock

from harness import (BINARY, CORRUPT, ENVIRONMENT, MISSING, OUT_OF_MEMORY, SOURCE, RunTest, end, files_under, pseudo_text, start, ttt)

sys.path.append(str(SOURCE / "build/pip"))
try:
    import pyarrow
    import pyarrow.parquet
except ImportError as error:
    pyarrow, reason = None, error


def write(path, rows, schema=None, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path, **options)


def documents(count: int, seed: int) -> list[dict]:
    texts = ["", "literal </s>", "a\0b", "naïve café 你好 😀", "carriage\r\nreturn"]
    return [{"id": number, "text": texts[number] if number < len(texts) else pseudo_text(number % 300, seed + number),
             "meta": {"pile_set_name": ("Pile-CC", "Books3", "Github")[number % 3], "language": "en"}}
            for number in range(count)]


class Parquet(RunTest):
    def prepare(self, source, *arguments, ranks: int = 0):
        output = self.scratch()
        self.succeed("prepare", source, "-o", output, "--validation-fraction", 0.05, *arguments, ranks=ranks)
        return output

    def same(self, output, expected) -> None:
        self.assertEqual(files_under(output), files_under(expected))
        for name in set(files_under(expected)) - {"plan.xxh3"}:  # of the inputs, which have other names
            self.assertEqual((output / name).read_bytes(), (expected / name).read_bytes(), name)

    def refuse(self, words, rows, *arguments, schema=None) -> None:
        path = self.scratch().with_suffix(".parquet")
        write(path, rows, schema)
        result = ttt("prepare", path, "-o", self.scratch(), *arguments)
        self.assertEqual(result.code, CORRUPT, result.err)
        for word in (path, *words):
            self.assertIn(str(word), result.err)

    def test_shards_are_those_of_json_lines_on_any_number_of_threads_and_ranks(self):
        codecs = ("snappy", "zstd", "gzip", "none")
        for number, codec in enumerate(codecs):
            rows = documents(100 + 20 * number, 1000 * number)
            name = f"{'abc'[number % 3]}/{number}"
            # Pages end between rows of one column where those of another go on; some columns fall back from their dictionary.
            write(self.directory / f"parquet/{name}.parquet", rows, row_group_size=64, data_page_size=4096,
                  dictionary_pagesize_limit=20000, compression=codec, data_page_version=("1.0", "2.0")[number % 2])
            lines = self.directory / f"json/{name}.jsonl"
            lines.parent.mkdir(parents=True, exist_ok=True)
            lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = ("--subset", "Books3=0.5", "--subset", "*=1", "--shard-tokens", 30000, "--part-bytes", 1,
                   "--remove-duplicates")
        expected = self.prepare(self.directory / "json", *options)
        self.assertIn("Books3", (expected / "prepare.json").read_text())
        for ranks, threads in ((0, 1), (0, 4), (2, 1), (4, 1)):
            self.same(self.prepare(self.directory / "parquet", *options, "--threads", threads, ranks=ranks), expected)

    def test_kills_change_no_byte(self):
        source = self.directory / "work.parquet"
        write(source, documents(900, 7), row_group_size=200)
        arguments = ("prepare", source, "--shard-tokens", 20000, "--threads", 2)
        whole, output = self.scratch(), self.scratch()
        begin = time.monotonic()
        self.succeed(*arguments, "-o", whole)
        longest = 0.9 * (time.monotonic() - begin)
        generator = random.Random(3)
        for _ in range(4):
            process = start(*arguments, "-o", output)
            time.sleep(generator.uniform(0.3 * longest, longest))
            process.kill()
            end(process)
        if not output.exists():
            self.succeed(*arguments, "-o", output)
        self.same(output, whole)

    def test_string_types(self):
        rows = [{"text": "one"}, {"text": ""}, {"text": "naïve"}, {"text": "one"}]
        expected = None
        for kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.large_binary(),
                     pyarrow.dictionary(pyarrow.int32(), pyarrow.string())):
            with self.subTest(kind=str(kind)):
                path = self.scratch().with_suffix(".parquet")
                column = pyarrow.array([row["text"].encode() if "binary" in str(kind) else row["text"] for row in rows])
                pyarrow.parquet.write_table(pyarrow.table({"text": column.cast(kind)}), path)
                output = self.scratch()
                self.succeed("prepare", path, "-o", output, "--validation-fraction", 0)
                expected = expected or output
                self.same(output, expected)

    def test_rows_that_are_no_documents_end_the_run_or_are_counted(self):
        kind = pyarrow.schema([("data", pyarrow.struct([("body", pyarrow.binary())]))])
        rows = [{"data": {"body": b"good"}}, {"data": None}, {"data": {"body": None}}, {"data": {"body": b"ab\xff"}}]
        self.refuse([":2: byte 0", 'column "data.body" is null'], rows, "--text-field", "data.body", schema=kind)
        path, output = self.directory / "rows.parquet", self.scratch()
        write(path, rows, kind)
        self.succeed("prepare", path, "-o", output, "--text-field", "data.body", "--skip-rejected", "--validation-fraction", 0)
        report = json.loads((output / "prepare.json").read_text())
        self.assertEqual((report["documents"], report["rejected"]), (1, {"no text": 2, "not UTF-8": 1}))
        self.assertIn(f"{path}:4: byte 2: 0xff", report["examples"][2])

    def test_a_text_over_the_limit_is_passed_over(self):
        path, output = self.directory / "long.parquet", self.scratch()
        write(path, [{"text": "a"}, {"text": "x" * ((64 << 20) + 1)}, {"text": "b"}])
        self.succeed("prepare", path, "-o", output, "--skip-rejected", "--validation-fraction", 0)
        self.assertEqual(json.loads((output / "prepare.json").read_text())["rejected"], {"too long": 1})

    def test_a_page_over_the_limit_is_refused_before_it_is_decompressed(self):
        """The page's header says 1.5 GiB; what it says is zigzag-encoded in seven bits a byte."""
        def encoded(size: int) -> bytes:
            return bytes((2 * size >> 7 * i & 127) | (128 if i < 4 else 0) for i in range(5))

        text = "x" * (140 << 20)
        path = self.directory / "page.parquet"
        write(path, [{"text": text}], compression="zstd", use_dictionary=False)
        content = path.read_bytes()
        page = b"\x15" + encoded(len(text) + 10)  # with the text's length, and levels
        self.assertEqual(content[:64].count(page), 1)
        path.write_bytes(content.replace(page, b"\x15" + encoded(3 << 29), 1))
        result = ttt("prepare", path, "-o", self.scratch())
        self.assertEqual(result.code, CORRUPT, result.err)
        for words in (str(path), f"a page takes {3 << 29} bytes", "smaller pages"):
            self.assertIn(words, result.err)

    def test_large_pages_lie_in_temporary_files(self):
        """One page of 320 MB, more than the program may have of its own memory."""
        path = self.directory / "books.parquet"
        texts = ["x" * 320_000 + str(number) for number in range(1000)]
        write(path, [{"text": "short"}, *({"text": text} for text in texts)], compression="zstd", use_dictionary=False)
        limit = lambda: resource.setrlimit(resource.RLIMIT_DATA, (400 << 20, 400 << 20))  # OpenBLAS takes 128
        arguments = ("prepare", path, "--max-bytes", 100, "--threads", 1, "--validation-fraction", 0)
        output = self.scratch()
        result = ttt(*arguments, "-o", output, preexec_fn=limit)
        self.assertEqual(result.code, 0, result.err)
        self.assertEqual(json.loads((output / "prepare.json").read_text())["documents"], 1)
        with mock.patch.dict(ENVIRONMENT, TMPDIR="/nowhere"):
            without = ttt(*arguments, "-o", self.scratch(), preexec_fn=limit)
        self.assertEqual(without.code, OUT_OF_MEMORY, without.err)
        self.assertIn("event=block_in_memory bytes=32", without.err)

    def test_other_columns_are_named(self):
        self.refuse(['column "text" is INT64, not a string'], [{"text": 1}])
        self.refuse(['no column "text"; there are: body, meta.id'], [{"body": "a", "meta": {"id": 1}}])
        self.refuse(['"text.list.element" is a list of BYTE_ARRAY', "not a string"], [{"text": ["a"]}],
                    "--text-field", "text.list.element")

    def test_damaged_files_are_corrupt_input(self):
        path = self.directory / "damaged.parquet"
        write(path, documents(200, 5), compression="snappy", write_page_checksum=True)
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 16
        for damage in (b"", content[:-1], content[:len(content) // 2], content[len(content) // 2:], bytes(flipped),
                       b"PAR1" + b"\xff" * 100 + b"PAR1"):
            path.write_bytes(damage)
            result = ttt("prepare", path, "-o", self.scratch())
            self.assertEqual(result.code, CORRUPT, result.err)
            self.assertIn(str(path), result.err)
        self.assertEqual(ttt("prepare", self.directory / "absent.parquet", "-o", self.scratch()).code, MISSING)


if __name__ == "__main__":
    if pyarrow is None or not (SOURCE / BINARY).with_name("libttt_parquet.so").exists():
        print(f"[  SKIPPED ] run_parquet ({reason if pyarrow is None else 'built without Arrow'})")
        sys.exit(77)
    unittest.main()

"""How much memory `ttt prepare` takes for what a decoder must have whole: large pages of Parquet, a large window of zstd. By hand:

    python3 tests/bench/prepare_memory.py [--ttt build/bin/ttt] [--directory DISK] [--other OLDER_TTT]

Writes 5.1 GB of generated text, one input after the other, and prints the peak of each program's resident memory in MiB and its
seconds. Needs zstd, and Python's pyarrow (build/pip, or the system's)."""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
sys.path.append(str(SOURCE / "build/pip"))
import pyarrow
import pyarrow.parquet


def base_text(generator: random.Random, num_bytes: int) -> str:
    words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(2, 10))) for _ in range(30000)]
    return " ".join(generator.choices(words, k=num_bytes // 6))[:num_bytes]


def texts(generator: random.Random, count: int, num_bytes: int):
    base = base_text(generator, 20 * num_bytes)
    for number in range(count):
        begin = generator.randrange(len(base) - num_bytes)
        yield f"{number} {base[begin:begin + num_bytes]}"


def parquet(path: Path, count: int, num_bytes: int, row_group: int) -> None:
    table = pyarrow.table({"text": list(texts(random.Random(1), count, num_bytes))})
    pyarrow.parquet.write_table(table, path, row_group_size=row_group, use_dictionary=False)


def large_window(path: Path) -> None:
    lines = path.with_suffix("")
    with lines.open("w") as file:
        for text in texts(random.Random(1), 16000, 100_000):
            file.write(json.dumps({"text": text}) + "\n")
    subprocess.run(["zstd", "-q", "--ultra", "-3", "--long=31", lines, "-o", path], check=True)
    lines.unlink()


def measure(ttt: Path, source: Path, output: Path) -> tuple[float, float]:
    """MiB and seconds."""
    begin = time.monotonic()
    process = subprocess.Popen([ttt, "prepare", source, "-o", output, "--tokenizer", "bytes", "--threads", "2"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{ttt} ended with {process.returncode}")
    shutil.rmtree(output)
    return usage.ru_maxrss / 1024, seconds


# Name, file and what writes it.
INPUTS = {
    "1,200 texts of 500 KB, pages of 200 MB": ("a.parquet", lambda path: parquet(path, 1200, 500_000, 400)),
    "1,500 texts of 540 KB, pages of 550 MB": ("b.parquet", lambda path: parquet(path, 1500, 540_000, 1 << 20)),
    "1,100 texts of 1 MB, pages of 1 GB": ("c.parquet", lambda path: parquet(path, 1100, 1_000_000, 1 << 20)),
    "a zstd window of 2^31": ("d.jsonl.zst", large_window),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ttt", type=Path, default=SOURCE / "build/bin/ttt")
    parser.add_argument("--other", type=Path, help="a second program on the same inputs")
    parser.add_argument("--directory", type=Path, help="on a disk with 10 GB; default: the temporary directory")
    parser.add_argument("--write", nargs=2, metavar=("INPUT", "PATH"), help="writes one input and ends")
    options = parser.parse_args()
    if options.write:
        INPUTS[options.write[0]][1](Path(options.write[1]))
        return
    programs = [program for program in (options.ttt, options.other) if program]
    directory = Path(tempfile.mkdtemp(prefix="ttt-memory-", dir=options.directory))
    try:
        for name, (file, _) in INPUTS.items():
            source = directory / file
            # In a process of its own: a program's peak counts what the one that started it had.
            subprocess.run([sys.executable, __file__, "--write", name, source], check=True)
            figures = (measure(program, source, directory / "tokens") for program in programs)
            print(f"{name:40} " + "; ".join(f"{mebibytes:.0f} MiB, {seconds:.1f} s" for mebibytes, seconds in figures), flush=True)
            source.unlink()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()

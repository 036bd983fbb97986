"""Sets `ttt prepare` against the SentencePiece library alone, on the same text with the same threads.

    python3 tests/bench/compare_tokenizing.py --ttt build/bin/ttt --bare build/bin/bare_sentencepiece TEXT...

TEXT: .txt files, cut in documents at empty lines. A SentencePiece model is trained on them first. The runs alternate; medians
are printed. The time of `ttt prepare` is that of the whole program, from a .jsonl.gz to renamed shards; that of the library is
encoding alone.
"""

import argparse
import gzip
import json
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--ttt", required=True)
    parser.add_argument("--bare", required=True)
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--vocab", default=8000, type=int)
    parser.add_argument("--megabytes", default=40, type=int, help="the text is repeated to at least so much")
    arguments = parser.parse_args()
    documents = [part for text in arguments.texts for part in text.read_text(errors="replace").replace("\0", "").split("\n\n\n") if part]
    size = sum(len(document.encode()) for document in documents)
    documents *= -(-arguments.megabytes * 10**6 // size)
    megabytes = sum(len(document.encode()) for document in documents) / 1e6
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines, plain, output = folder / "text.jsonl.gz", folder / "text.nul", folder / "out"
        with gzip.open(lines, "wt", compresslevel=6) as file:
            file.writelines(json.dumps({"text": document}) + "\n" for document in documents)
        plain.write_bytes(b"".join(document.encode() + b"\0" for document in documents))
        trained = folder / "trained"
        subprocess.run([arguments.ttt, "prepare", *arguments.texts, "-o", trained, "--train-tokenizer", str(arguments.vocab)],
                       check=True, capture_output=True)
        model = trained / "tokenizer.model"
        ours, bare = [], []
        for _ in range(arguments.rounds):
            begin = time.monotonic()
            subprocess.run([arguments.ttt, "prepare", lines, "-o", output, "--tokenizer", model, "--threads", str(arguments.threads)],
                           check=True, capture_output=True)
            ours.append(time.monotonic() - begin)
            shutil.rmtree(output)
            out = subprocess.run([arguments.bare, model, plain, str(arguments.threads)], check=True, capture_output=True, text=True).stdout
            bare.append(float(out.split()[0]))
    ours_median, bare_median = statistics.median(ours), statistics.median(bare)
    print(f"{megabytes:.1f} MB in {len(documents)} documents, {arguments.threads} threads, {arguments.rounds} rounds")
    print(f"ttt prepare    {ours_median:6.2f} s  {megabytes / ours_median:6.2f} MB/s  {' '.join(f'{s:.2f}' for s in ours)}")
    print(f"SentencePiece  {bare_median:6.2f} s  {megabytes / bare_median:6.2f} MB/s  {' '.join(f'{s:.2f}' for s in bare)}")
    print(f"ratio {ours_median / bare_median:.3f}; largest memory of a child {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10} MiB")


if __name__ == "__main__":
    main()

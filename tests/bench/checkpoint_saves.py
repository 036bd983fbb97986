"""What saving costs and what restarting costs, beside what the disk can do. By hand, on a machine that has nothing else to do:

    nice -n -15 python3 tests/bench/checkpoint_saves.py [--directory DISK] [--repeats 5]

Prints medians (smallest to largest): for how long a save keeps training from going on, asynchronous and not; how fast a
checkpoint becomes durable beside `dd conv=fsync` of as many bytes; how fast it is read back, and read and verified later,
beside `dd`, none of it from memory; and the seconds from the start of a resumed run to the end of its first step. Whatever is compared takes turns."""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "run"))
from harness import BINARY, ENVIRONMENT, MPIRUN, OK, SOURCE, checkpoints, end, last_step, sets, start, ttt, write_books

# 31 million parameters, a checkpoint of 360 MiB; few tokens, so that a step takes a second or less.
STATE = ("model.vocab_size=40000", "model.hidden_size=640", "model.intermediate_size=1280", "model.num_layers=1",
         "model.num_heads=10", "data.context_length=16", "train.num_threads=1", "eval.num_windows=0")
# The first saves are not counted: their files take memory that a virtual machine must get from its host.
SAVES, COUNTED = 6, 3


def succeed(*arguments, **options):
    result = ttt(*arguments, timeout=600, **options)
    if result.code != OK:
        raise SystemExit(result.err)
    return result


def timed(action) -> float:
    begin = time.monotonic()
    action()
    return time.monotonic() - begin


def text_of(values, unit="") -> str:
    return f"{statistics.median(values):.4g}{unit} ({min(values):.4g} to {max(values):.4g}, {len(values)} times)"


class Benchmark:
    def __init__(self, directory: Path):
        self.directory = directory
        write_books(directory / "books", count=6)
        self.tokens = directory / "tokens"
        succeed("prepare", directory / "books", "-o", self.tokens, "--validation-every", 3)

    def train_arguments(self, preset, run, *overrides):
        return ["train", "--config", SOURCE / f"configs/{preset}.textproto",
                *sets(f"data.train={self.tokens}", f"data.validation={self.tokens}", f"output_directory={run}", *overrides)]

    def save(self, asynchronous: bool, interval: int) -> dict:
        """Save by save: the seconds in which training stood still, until the shard was durable, until it was read back too, and
        until the commit; and the checkpoint's MiB."""
        run = self.directory / "run"
        shutil.rmtree(run, ignore_errors=True)
        # A step more than the saves, and the last save is not counted: the run waits for that one.
        result = succeed(*self.train_arguments("tiny", run, *STATE, f"checkpoint.interval_steps={interval}",
                                               "checkpoint.keep_last=1",
                                               f"train.steps={SAVES * interval + 1}",
                                               f"checkpoint.asynchronous={str(asynchronous).lower()}"))
        if "checkpoint_waited" in result.err.split(f"checkpoint step={SAVES * interval} ")[0]:
            raise SystemExit("a save was waited for: the disk is too slow for this interval")
        def figures(name):
            return [float(value) for value in re.findall(rf" {name}=(\S+)", result.err)[SAVES - COUNTED:SAVES]]

        return {name: figures(name + "_seconds") for name in ("stopped", "written_after", "durable", "read_back")} | {
            "mebibytes": figures("mebibytes")[0]}

    def write_plainly(self, period: float) -> list[float]:
        """The same bytes, and as a run does it: a new file every `period` seconds, and the one before is removed afterwards.
        The pause matters on a virtual machine that gives unused memory back to its host: what was freed a moment ago is
        written three times as fast as what must be asked for again."""
        shard = checkpoints(self.directory / "run")[-1] / "rank-00000.h5"
        seconds = []
        for number in range(SAVES):
            path = self.directory / f"plain-{number}"
            seconds.append(timed(lambda: subprocess.run(["dd", f"if={shard}", f"of={path}", "bs=1M", "conv=fsync"],
                                                        check=True, capture_output=True)))
            (self.directory / f"plain-{number - 1}").unlink(missing_ok=True)
            time.sleep(max(0, period - seconds[-1]))
        path.unlink()
        return seconds[SAVES - COUNTED:]

    def forget(self, files):
        """Out of the system's cache."""
        for path in files:
            subprocess.run(["dd", f"of={path}", "oflag=nocache", "conv=notrunc,fdatasync", "count=0"], check=True,
                           capture_output=True)

    def read(self) -> tuple[float, float]:
        """Seconds to verify the newest checkpoint, and to read its shards with dd."""
        newest = checkpoints(self.directory / "run")[-1]
        shards = sorted(newest.glob("*.h5"))
        self.forget(shards)
        verified = timed(lambda: succeed("inspect", newest, "--verify"))
        self.forget(shards)
        plain = timed(lambda: [subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=1M"], check=True,
                                              capture_output=True) for path in shards])
        return verified, plain

    def restart(self, preset: str, ranks: int) -> float:
        """Of a run that is killed after a checkpoint."""
        run = self.directory / f"restart-{preset}-{ranks}"
        limits = ("train.steps=1000000", "optimizer.decay_steps=50", "checkpoint.interval_steps=2", "eval.num_windows=0",
                  "train.num_threads=1")
        arguments = self.train_arguments(preset, run, *limits)
        if not run.exists():
            process = start(*arguments, ranks=ranks)
            while len(checkpoints(run)) < 1:
                time.sleep(0.1)
            end(process)
        before = last_step(run)
        begin = time.monotonic()
        process = start(*arguments, "--set", "checkpoint.interval_steps=0", ranks=ranks)
        # Rows after the checkpoint are dropped first; the next step's is new.
        rows = lambda: (run / "metrics.jsonl").read_bytes().count(b'"kind":"run"')
        old = rows()
        while rows() == old or last_step(run) == self.resumed_step(run):
            time.sleep(0.001)
        seconds = time.monotonic() - begin
        process.kill() if ranks == 0 else end(process)
        process.communicate()
        return seconds

    def resumed_step(self, run: Path) -> int:
        return int(checkpoints(run)[-1].name.removeprefix("step-"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=Path, help="on the disk to be measured; default: the temporary directory")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--restarts-only", action="store_true")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="ttt-saves-", dir=options.directory))
    try:
        benchmark = Benchmark(directory)
        if not options.restarts_only:
            saves = {True: [], False: []}
            rates = {"durable": [], "dd conv=fsync": [], "read back": [], "verified read": [], "dd read": []}
            for _ in range(options.repeats):
                for asynchronous in (True, False):
                    saves[asynchronous].append(benchmark.save(asynchronous, 4))
                # One after the other, as dd writes.
                begin = time.monotonic()
                found = benchmark.save(False, 1)
                period = (time.monotonic() - begin) / (SAVES + 1)
                mebibytes = found["mebibytes"]
                verified, plain = benchmark.read()
                for name, seconds in (("durable", found["durable"]), ("dd conv=fsync", benchmark.write_plainly(period)),
                                      ("read back", found["read_back"]), ("verified read", [verified]), ("dd read", [plain])):
                    rates[name] += [mebibytes / value for value in seconds]
            print(f"checkpoint             {mebibytes:.0f} MiB, one in {period:.2g} s when one follows the other")
            for asynchronous, name in ((True, "asynchronous"), (False, "synchronous")):
                stopped, written = ([value for save in saves[asynchronous] for value in save[key]]
                                    for key in ("stopped", "written_after"))
                print(f"{name:22} stops training for {text_of(stopped, ' s')}, committed after {text_of(written, ' s')}")
            for name, values in rates.items():
                print(f"{name:22} {text_of(values, ' MiB/s')}")
        for preset, ranks in (("tiny", 0), ("tiny", 2), ("small", 0), ("small", 2)):
            seconds = [benchmark.restart(preset, ranks) for _ in range(options.repeats)]
            print(f"restart {preset:6} {max(ranks, 1)} rank(s) {text_of(seconds, ' s')}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()

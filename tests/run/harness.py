"""What the run tests share: starting `ttt`, a corpus, and reading what a run wrote.

TTT_BINARY names the program. Only processes started here are ever signalled.
"""

import json
import os
import random
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import unittest
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("TTT_BINARY", str(SOURCE / "build/bin/ttt"))
FAULTY = os.environ.get("TTT_FAULTY", str(SOURCE / "build/bin/ttt_faulty"))
TINY = str(SOURCE / "configs/tiny.textproto")
MPIRUN = (os.environ.get("TTT_MPIRUN", "mpirun"), "--oversubscribe", "--bind-to", "none",
          "--mca", "mpi_yield_when_idle", "1")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
               "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
TIMEOUT_SECONDS = 120

OK, USAGE, CORRUPT, MISSING, LOCKED, IO, PERMISSION, MISMATCH, STOPPED = 0, 64, 65, 66, 73, 74, 77, 78, 80
PEER_LOST, OUT_OF_MEMORY = 75, 83

# Smaller than configs/tiny.textproto: a step takes a few milliseconds.
SMALL = ("model.hidden_size=32", "model.intermediate_size=64", "model.num_layers=1",
         "data.context_length=48", "train.num_threads=1")


@dataclass
class Result:
    code: int
    out: str
    err: str


def start(*arguments, ranks: int = 0, launcher=(), fault: str = "", **options) -> subprocess.Popen:
    """A running `ttt`, under mpirun when `ranks` is positive; with a `fault`, the program that has fault points. Whoever
    starts it finishes it."""
    mpirun = [*MPIRUN, *launcher, "-np", str(ranks)] if ranks else []
    binary, environment = (FAULTY, {**ENVIRONMENT, "FAULT": fault}) if fault else (BINARY, ENVIRONMENT)
    return subprocess.Popen([*mpirun, binary, *map(str, arguments)], env=environment, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finish(process: subprocess.Popen, timeout: float = TIMEOUT_SECONDS) -> Result:
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        end(process)
        raise
    return Result(process.returncode, out, err)


def end(process: subprocess.Popen) -> None:
    """SIGTERM first: an mpirun that is killed outright cannot end its ranks."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
    process.communicate()


def ttt(*arguments, ranks: int = 0, timeout: float = TIMEOUT_SECONDS, **options) -> Result:
    return finish(start(*arguments, ranks=ranks, **options), timeout)


def wait_until(condition, what: str, timeout: float = TIMEOUT_SECONDS) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s for {what}")
        time.sleep(0.002)


def sets(*assignments) -> list[str]:
    return [argument for assignment in assignments for argument in ("--set", assignment)]


def ranks_of(launcher: subprocess.Popen) -> dict[int, int]:
    """Rank -> process id of the children of an mpirun."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent != launcher.pid:
                continue
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        for variable in variables:
            name, _, value = variable.partition(b"=")
            if name == b"OMPI_COMM_WORLD_RANK":
                found[int(value)] = int(entry.name)
    return found


def pseudo_text(num_words: int, seed: int) -> str:
    """Words of a small vocabulary with skewed frequencies, in sentences: learnable and always the same."""
    generator = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(generator.choices(syllables, k=1 + i % 3)) for i in range(300)]
    weights = [1 / (i + 2) for i in range(len(words))]
    text = []
    while len(text) < num_words:
        sentence = generator.choices(words, weights, k=generator.randint(4, 12))
        text += [sentence[0].capitalize(), *sentence[1:-1], sentence[-1] + "."]
    return " ".join(text) + "\n"


def write_books(directory: Path, count: int = 20, num_words: int = 3000) -> None:
    directory.mkdir()
    for book in range(count):
        (directory / f"{book:02}.txt").write_text(pseudo_text(num_words, book), encoding="utf-8")


def rows(run: Path, kind: str = "train") -> list[dict]:
    """metrics.jsonl's complete rows of a kind, without what only measures time."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    timed = ("tokens_per_second", "wall_seconds", "data_seconds", "communication_seconds",
             "exposed_communication_seconds")
    return [{key: value for key, value in row.items() if key not in timed}
            for row in map(json.loads, lines) if row["kind"] == kind]


def curve(run: Path) -> list[dict]:
    return rows(run, "train") + rows(run, "eval")


def last_step(run: Path) -> int:
    """Of the metrics, 0 without any. Safe while the run writes them."""
    try:
        lines = (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return json.loads(lines[-1])["step"] if lines else 0


def checkpoints(run: Path) -> list[Path]:
    """Oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if not path.name.endswith(".tmp"))


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def files_under(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def read_safetensors(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Name -> (dtype, shape, bytes)."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8:8 + length])
    data = content[8 + length:]
    return {name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
            for name, entry in header.items() if name != "__metadata__"}


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def stored_zstd(content: bytes) -> bytes:
    """A zstd frame of one uncompressed block, of at most 128 KiB."""
    header = b"\x28\xb5\x2f\xfd" + b"\xa0" + struct.pack("<I", len(content))
    return header + struct.pack("<I", 1 | len(content) << 3)[:3] + content


class RunTest(unittest.TestCase):
    """A temporary directory for the class with a prepared corpus of bytes in `tokens`."""

    num_scratch = 0

    @classmethod
    def setUpClass(cls):
        cls.directory = Path(tempfile.mkdtemp(prefix="ttt-run-"))
        cls.addClassCleanup(shutil.rmtree, cls.directory, ignore_errors=True)
        write_books(cls.directory / "books")
        cls.tokens = cls.directory / "tokens"
        result = ttt("prepare", cls.directory / "books", "-o", cls.tokens, "--validation-every", 7)
        if result.code != OK:
            raise AssertionError(result.err)

    def succeed(self, *arguments, **options) -> Result:
        result = ttt(*arguments, **options)
        self.assertEqual(result.code, OK, f"{arguments}\n{result.out}\n{result.err}")
        return result

    def train_arguments(self, run: Path, *overrides, resume: str = "auto") -> list[str]:
        return ["train", "--config", TINY, "--resume", resume,
                *sets(f"data.train={self.tokens}", f"data.validation={self.tokens}",
                      f"output_directory={run}", *overrides)]

    def train(self, name: str, *overrides, ranks: int = 0, resume: str = "auto") -> Path:
        """Trains configs/tiny.textproto with overrides to its end in a directory of that name."""
        run = self.directory / name
        self.succeed(*self.train_arguments(run, *overrides, resume=resume), ranks=ranks)
        return run

    def weights(self, run: Path) -> bytes:
        """Every parameter of the newest checkpoint, as exported."""
        exported = self.scratch()
        self.succeed("export", "-m", run, "-o", exported)
        return (exported / "model.safetensors").read_bytes()

    def state(self, run: Path) -> bytes:
        """Parameters and both moments a step after the newest checkpoint, which one rank makes of any
        number's: some models cannot be exported, and shards of other numbers of ranks are other files."""
        newest, scratch = checkpoints(run)[-1], self.scratch()
        self.succeed("train", "--config", run / "config.textproto", "--resume", newest,
                     *sets(f"output_directory={scratch}", f"train.steps={step_of(newest) + 1}",
                           "eval.num_windows=0", "parallel.sequence_ranks=1"))
        return (checkpoints(scratch)[-1] / "rank-00000.h5").read_bytes()

    def scratch(self) -> Path:
        """A path of its own where nothing is yet."""
        type(self).num_scratch += 1
        return self.directory / f"scratch-{self.num_scratch}"

    def assert_same_run(self, run: Path, golden: Path) -> None:
        """The same curve to the last digit, a row a step, and the same state bit for bit."""
        steps = [row["step"] for row in rows(run)]
        self.assertEqual(steps, list(range(1, len(steps) + 1)))
        self.assertEqual(curve(run), curve(golden))
        self.assertTrue(self.state(run) == self.state(golden), f"the states of {run} and {golden} differ")


def catches(process: subprocess.Popen, number: signal.Signals) -> bool:
    """Whether the process has a handler for it; false once it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return False
    mask = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), "0")
    return bool(int(mask, 16) >> (number - 1) & 1)


def signal_ranks(launcher: subprocess.Popen, number: signal.Signals, rank: int) -> bool:
    """False when that rank is not there (any more)."""
    process = ranks_of(launcher).get(rank)
    if process is None:
        return False
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True

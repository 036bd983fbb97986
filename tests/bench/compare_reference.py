"""Speed and memory of this program beside the public PyTorch reference, on the same cores.

    python3 tests/bench/compare_reference.py --reference DIR --python /usr/bin/python3 --json results.json

DIR holds ttt.py of ttt-lm-pytorch; --python has torch. Repeats alternate between the two programs, so that a slow minute of the
machine meets both; a figure is the median of the repeats. Where other programs run beside, `--threads 1 --clock cpu` counts the
seconds of the processor that each side used. Prints a table in Markdown."""

import argparse
import json
import os
import re
import statistics
import struct
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Row:
    """One comparison. `ours` is a benchmark's name; `reference` the arguments of reference_worker.py."""

    work: str
    goal: str
    ours: str
    reference: tuple[str, ...]
    our_values: list[float] = field(default_factory=list)
    reference_values: list[float] = field(default_factory=list)
    unit: str = "tokens/s"

    def ratio(self) -> float:
        ours, reference = statistics.median(self.our_values), statistics.median(self.reference_values)
        return reference / ours if self.unit == "MiB" else ours / reference


def inner_row(model: str, length: int, goal: str) -> Row:
    return Row(f"inner loop, {model}, fp32, forward + backward, T={length}", goal,
               f"forward_backward/{model}/T:{length}/real_time", ("inner", model, "f32", str(length)))


def step_row(model: str, dtype: str, length: int, goal: str) -> Row:
    return Row(f"125M {model}, {dtype}, forward + loss + backward, T={length}", goal,
               f"bench_step/{model}_{dtype}/T:{length}/real_time", ("step", model, dtype, str(length)))


def speed_rows() -> list[Row]:
    rows = [inner_row("linear", length, ">= 12") for length in (512, 2048)]
    rows += [inner_row("mlp", length, ">= 5") for length in (512, 2048)]
    for dtype, goal in (("f32", ">= 2"), ("bf16", "")):
        rows += [step_row("linear", dtype, 512, goal), step_row("linear", dtype, 2048, goal), step_row("mlp", dtype, 512, goal)]
    rows += [Row(f"125M {model}, fp32, decoding after 512 tokens", ">= 15", f"bench_decode/{model}/real_time",
                 ("decode", model, "f32", "1")) for model in ("linear", "mlp")]
    return rows


def memory_rows() -> list[Row]:
    rows = [step_row("linear", "f32", 2048, ">= 3"), step_row("linear", "bf16", 2048, ">= 3")]
    for row in rows:
        row.work, row.unit = "peak memory of " + row.work, "MiB"
    return rows


class Machine:
    """Starts the programs of both sides with the same number of threads."""

    def __init__(self, options: argparse.Namespace):
        self.bench = str(Path(options.build).resolve() / "bin" / "ttt_bench")
        self.worker = [options.python, str(ROOT / "tests/bench/reference_worker.py"), "--reference", options.reference,
                       "--threads", str(options.threads), "--clock", options.clock]
        self.clock = options.clock
        threads = str(options.threads)
        # OpenBLAS 0.3.21 takes CPUs that it does not know for the oldest; ours corrects that itself, the reference cannot.
        self.environment = dict(os.environ, OMP_NUM_THREADS=threads, OPENBLAS_NUM_THREADS=threads,
                                OPENBLAS_CORETYPE=options.blas_kernels)

    def start(self, command: list[str], **pipes) -> subprocess.Popen:
        return subprocess.Popen(command, env=self.environment, text=True, stdout=subprocess.PIPE, **pipes)

    def start_ours(self, benchmark: str, seconds: float) -> subprocess.Popen:
        return self.start([self.bench, f"--benchmark_filter=^{benchmark}$", f"--benchmark_min_time={seconds}",
                           "--benchmark_format=json"], stderr=subprocess.DEVNULL)

    def our_speed(self, benchmark: str) -> float:
        output = self.start_ours(benchmark, 0.5).communicate()[0]
        result = json.loads(output)["benchmarks"][0]
        wall_of_clock = result["real_time"] / result["cpu_time"] if self.clock == "cpu" else 1.0
        return result["items_per_second"] * wall_of_clock

    def start_reference(self, arguments: tuple[str, ...]) -> subprocess.Popen:
        process = self.start([*self.worker, *arguments], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if not process.stdout.readline().startswith("ready"):
            sys.exit(f"the reference failed: {' '.join([*self.worker, *arguments])}")
        return process


def measure_speed(machine: Machine, row: Row, repeats: int) -> None:
    reference = machine.start_reference(row.reference)
    for _ in range(repeats):
        row.our_values.append(machine.our_speed(row.ours))
        reference.stdin.write("run\n")
        reference.stdin.flush()
        row.reference_values.append(float(reference.stdout.readline()))
    reference.stdin.close()
    reference.wait()


def peak_mib(process: subprocess.Popen) -> float:
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    return usage.ru_maxrss / 1024


def measure_memory(machine: Machine, row: Row) -> None:
    row.our_values.append(peak_mib(machine.start_ours(row.ours, 0.01)))
    reference = machine.start_reference(row.reference)
    reference.stdin.close()  # the warm-up run is all
    row.reference_values.append(peak_mib(reference))


def write_tokens(path: Path, count: int, vocabulary: int) -> None:
    """A .npy array of uniformly random U16."""
    header = f"{{'descr': '<u2', 'fortran_order': False, 'shape': ({count},), }}"
    header += " " * (63 - (len(header) + 10) % 64) + "\n"
    tokens = (value % vocabulary for (value,) in struct.iter_unpack("<I", os.urandom(4 * count)))
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + struct.pack(f"<{count}H", *tokens))


@dataclass
class Run:
    """A training run of our program alone: what to set, on how many ranks and threads."""

    name: str
    config: str
    settings: tuple[str, ...]
    ranks: int = 1
    threads: int = 1
    tokens_per_second: list[float] = field(default_factory=list)


def train(run: Run, build: str) -> float:
    """Median tokens a second of the steps after the first."""
    with tempfile.TemporaryDirectory() as directory:
        tokens = Path(directory) / "tokens.npy"
        write_tokens(tokens, 1 << 18, 4096)
        settings = [f"data.train={tokens}", "data.validation=", f"output_directory={directory}/run", "checkpoint.interval_steps=0",
                    "eval.interval_steps=0", "log.interval_steps=1", f"train.num_threads={run.threads}", *run.settings]
        command = ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(run.ranks)] if run.ranks > 1 else []
        command += [str(Path(build).resolve() / "bin" / "ttt"), "train", "--config", str(ROOT / run.config)]
        for setting in settings:
            command += ["--set", setting]
        environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        rows = [json.loads(line) for line in Path(directory, "run/metrics.jsonl").read_text().splitlines()]
    speeds = [row["tokens_per_second"] for row in rows if row["kind"] == "train"]
    return statistics.median(speeds[1:])


def own_runs() -> list[Run]:
    big = ("train.steps=4", "train.batch_size=2", "train.micro_batch_size=1", "parallel.virtual_shards=2",
           "optimizer.warmup_steps=1", "optimizer.decay_steps=4", "data.context_length=1024")
    small = ("optimizer.warmup_steps=1", "optimizer.decay_steps=6", "train.steps=6", "parallel.virtual_shards=1")
    preset = "configs/pile/ttt_linear_m_125m_2k.textproto"
    runs = [Run("125M, 1 rank of 1 thread", preset, big), Run("125M, 2 ranks of 1 thread", preset, big, ranks=2),
            Run("125M, 1 rank of 2 threads", preset, big, threads=2)]
    for length, batch in ((1024, 8), (8192, 1)):
        runs.append(Run(f"small, T={length}, {batch} a step", "configs/small.textproto",
                        (*small, f"data.context_length={length}", f"train.batch_size={batch}"), threads=2))
    return runs


def print_tables(rows: list[Row], runs: list[Run]) -> None:
    print("| work | ours | reference | ratio | goal |\n|---|---|---|---|---|")
    for row in rows:
        if row.our_values:
            ours, reference = statistics.median(row.our_values), statistics.median(row.reference_values)
            print(f"| {row.work} | {ours:,.0f} {row.unit} | {reference:,.0f} | {row.ratio():.1f} | {row.goal} |")
    print("\n| run | tokens/s |\n|---|---|")
    for run in runs:
        if run.tokens_per_second:
            print(f"| {run.name} | {statistics.median(run.tokens_per_second):,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True, help="directory with the reference's ttt.py")
    parser.add_argument("--python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--build", default=str(ROOT / "build"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor seconds, of one thread only")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--blas-kernels", default="SkylakeX", help="OPENBLAS_CORETYPE of both sides")
    parser.add_argument("--only", default="", help="only rows that this regular expression finds")
    parser.add_argument("--json", help="where to write all values")
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu needs --threads 1")
    machine = Machine(options)
    speed = [row for row in speed_rows() if re.search(options.only, row.work)]
    memory = [row for row in memory_rows() if re.search(options.only, row.work)]
    runs = [run for run in own_runs() if re.search(options.only, run.name)]
    for row in speed:
        measure_speed(machine, row, options.repeats)
        print(f"{row.work}: {row.ratio():.2f}", file=sys.stderr, flush=True)
    for row in memory:
        measure_memory(machine, row)
    for _ in range(options.repeats):
        for run in runs:
            run.tokens_per_second.append(train(run, options.build))
    print_tables(speed + memory, runs)
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(entry) for entry in (*speed, *memory, *runs)], indent=1) + "\n")


main()

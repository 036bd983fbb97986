"""Breaks the fused kernels on purpose, one statement at a time, and expects a test to notice.

    python3 tests/mutations.py [--build build] [--only TEXT] [--list]

Run by hand, in a clean checkout with a configured build (ninja). A mutant is a kernel without one of its barriers or
without one of the statements that add a term, or with one of the changes of REPLACED. Its object is compiled and linked
into the emulator's tests: barriers must be missed by ThreadSanitizer (cuda_race_tests), all else by the comparisons with
the reference (cuda_emulated_tests). Sources and programs are restored at the end. One line a mutant: the test that
failed, or SURVIVED. The last line is `N passed, N failed`."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "kernels/cuda"

# The files whose statements are deleted, and the sources that include them.
UNITS = {
    "ttt_mlp_forward.h": ["ttt_mlp_forward.cu"],
    "ttt_mlp_forward.cu": ["ttt_mlp_forward.cu"],
    "ttt_mlp_backward_phases.h": ["ttt_mlp_backward.cu"],
    "ttt_mlp_backward.cu": ["ttt_mlp_backward.cu"],
    "ttt_linear_forward.cu": ["ttt_linear_forward.cu"],
    "ttt_linear_backward.h": ["ttt_linear_backward.cu"],
    "ttt_linear_backward.cu": ["ttt_linear_backward.cu"],
    "ttt_linear_state.h": ["ttt_linear_forward.cu", "ttt_linear_backward.cu"],
    "ttt_linear_step.cu": ["ttt_linear_step.cu"],
    "ttt_mlp_step.cu": ["ttt_mlp_step.cu"],
    "ttt_step_tiles.h": ["ttt_linear_step.cu", "ttt_mlp_step.cu"],
    "shared_qk.cu": ["shared_qk.cu"],
    "conv_runs.h": ["shared_qk.cu", "causal_conv.cu"],
    "norm_conv.cu": ["norm_conv.cu"],
}
BARRIER = re.compile(r"^\s*(__syncthreads|__syncwarp|cluster_barrier|slice_barrier|first_barrier)\(\);")
TERM = re.compile(r"^\s*(receive|wait_for_|add_|multiply_add|mma_|send|keep|copy_async_wait|(own\.)?\w+(\[\w+\])* [-+*]= )[^{}]*;$")
# What adds nothing that a test could see, with the reason.
HARMLESS = {
    "add_partials(partials, gradients, stream);": "other tests call it",
    "cluster_barrier();  // every block has started before another stores into it":
        "the emulator starts the blocks of a cluster together",
    "sum[kD] += d;": "dW' is centred there: this mean is bf16's rounding",
    "square += a.in.norm_weight[head * F + f] * a.in.norm_weight[head * F + f];": "multiplies that mean",
}
# file, text, what it becomes
REPLACED = [
    ("ttt_mlp_backward_phases.h", "mean_d_n[1] + rate * mean[2]", "mean_d_n[1]"),
    ("ttt_mlp_backward_phases.h", "-step * d_b2[e];", "0.0F;"),
    ("ttt_mlp_backward_phases.h", "(d_n[e] - mean[0] - row.n[e] * mean[1])", "(d_n[e] - row.n[e] * mean[1])"),
    ("ttt_mlp_backward_phases.h", "(d_n[e] - mean[0] - row.n[e] * mean[1])", "(d_n[e] - mean[0])"),
    ("ttt_mlp_backward_phases.h", "d_g * loss.mean_un + u * mean[1]", "d_g * loss.mean_un"),
    ("ttt_mlp_backward_phases.h", "d_g * loss.mean_un + u * mean[1]", "u * mean[1]"),
    ("ttt_mlp_backward_phases.h", "start_with_bias(d_g1, L::kDB1);", "start_with_bias(d_g1, L::kB1);"),
    ("ttt_mlp_backward.cu", "      d_step = 0;", ""),
    ("ttt_mlp_forward.h", "kB2), at.lane);", "kRowMeans), at.lane);"),
    ("ttt_mlp_forward.h", "at.slice == 0 ? 1.0F : 0.0F", "1.0F"),
    ("shared_qk.cu", "if (++entry_ == turns.entries) entry_ = 0;", "++entry_;"),
    ("shared_qk.cu", "if (++entry_ == turns.entries) entry_ = 0;", ""),
    ("shared_qk.cu", "entry_(static_cast<int>(token % turns.entries))", "entry_(0)"),
    ("shared_qk.cu", "row_(turns.table + channel % turns.head_dim)", "row_(turns.table)"),
    ("shared_qk.cu", "a * rotation[i] - b * rotation[i + 1]", "a * rotation[i]"),
    ("shared_qk.cu", "a * rotation[i + 1] + b * rotation[i]", "b * rotation[i]"),
    ("shared_qk.cu", "turn(rotation, sum);", ";"),
    ("shared_qk.cu", "turn(rotation, ahead[0][i]);", ""),
    ("shared_qk.cu", "turn(rotation, ahead[1][i]);", ""),
    ("shared_qk.cu", "sum[k] = offsets[which][k];", "sum[k] = offsets[0][k];"),
    ("shared_qk.cu", "sums[which].bias[k] += ahead[which][i][k];", ";"),
    ("shared_qk.cu", "rotation_table(p.size(1), p.size(3), *rope, sign, stream)",
     "rotation_table(p.size(1), p.size(3), *rope, 1.0, stream)"),
    ("shared_qk.cu", "if (left > 0) {", "{"),
    ("norm_conv.cu", "sum[k] += rows[i][k];", ";"),
    ("norm_conv.cu", "sum[k] = offset[k];", "sum[k] = 0.0F;"),
    ("norm_conv.cu", "sums.norm[k] += d_normed[i][k] * normalized;", ""),
    ("norm_conv.cu", "sums.bias[k] += ahead[i][k];", ""),
    ("norm_conv.cu", " - normalized * mean) + ahead[i][k]", ") + ahead[i][k]"),
    ("norm_conv.cu", " - normalized * mean) + ahead[i][k]", " - normalized * mean)"),
    ("norm_conv.cu", "normed[k] = channels.norm[k] * normalized;", "normed[k] = normalized;"),
    ("norm_conv.cu", "add_product(normed, ahead[i + lag], sums.weight[lag]);", ";"),
    ("norm_conv.cu", "+ epsilon);", ");"),
    ("norm_conv.cu", "+ epsilon);", "+ 1e-6F);"),
    ("norm_conv.cu", "if (left > 0) load_chunk", "load_chunk"),
]


class Mutant(NamedTuple):
    name: str
    file: str
    text: str  # of the whole file
    is_barrier: bool


def mutants() -> list[Mutant]:
    found = []
    for file in UNITS:
        lines = (KERNELS / file).read_text().splitlines(keepends=True)
        for i, line in enumerate(lines):
            is_barrier = BARRIER.match(line) is not None
            if not is_barrier and not TERM.match(line) or line.strip() in HARMLESS:
                continue
            found.append(Mutant(f"{file}:{i + 1}: without {line.strip()}", file,
                                "".join(lines[:i] + ["\n"] + lines[i + 1:]), is_barrier))
    for file, old, new in REPLACED:
        text = (KERNELS / file).read_text()
        if text.count(old) != 1:
            sys.exit(f"mutations: {old!r} stands {text.count(old)} times in {file}")
        line = text[:text.index(old)].count("\n") + 1
        found.append(Mutant(f"{file}:{line}: {old.strip()} -> {new}", file, text.replace(old, new), False))
    return found


class Program:
    """A test program of the build, with the commands that make it."""

    def __init__(self, build: Path, name: str):
        self.build, self.path = build, build / "bin" / name
        listed = subprocess.run(["ninja", "-C", build, "-t", "commands", name], capture_output=True, text=True,
                                check=True).stdout.splitlines()
        self.link = listed[-1]
        self.compilations = listed[:-1]

    def make(self, sources: list[str]) -> str:
        """What went wrong, or nothing."""
        commands = [line + " -w" for line in self.compilations
                    if any(line.endswith(f"/kernels/cuda/{source}") for source in sources)]
        if self.path.name == "cuda_emulated_tests":  # its kernels are those of an object library
            commands = [line for line in commands if "ttt_cuda_emulated.dir" in line]
        for command in [*commands, self.link]:
            done = subprocess.run(command, shell=True, cwd=self.build, capture_output=True, text=True)
            if done.returncode != 0:
                return done.stdout + done.stderr
        return ""

    def run(self, test_filter: str) -> str:
        """The first test that fails, or nothing."""
        environment = {**os.environ, "TSAN_OPTIONS": "exitcode=66 halt_on_error=1 atexit_sleep_ms=0", "OMP_NUM_THREADS": "1"}
        command = [self.path, f"--gtest_filter={test_filter}", "--gtest_fail_fast"]
        if "race" in self.path.name:  # as tests/CMakeLists.txt has it
            command = ["setarch", "-R", *command]
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
        except subprocess.TimeoutExpired:
            return "does not end"
        if done.returncode == 0:
            return ""
        failed = re.search(r"\[  FAILED  \] (\S+)", done.stdout)
        running = re.findall(r"\[ RUN      \] (\S+)", done.stdout)
        why = " (data race)" if "data race" in done.stderr else " (stopped)" if not failed else ""
        return (failed.group(1) if failed else running[-1]).rstrip(",") + why


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--only", default="", help="mutants whose line contains this")
    parser.add_argument("--list", action="store_true", help="print the mutants, try none")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in mutants() if arguments.only in mutant.name]
    if arguments.list:
        print("\n".join(mutant.name for mutant in chosen))
        return 0
    names = ["cuda_emulated_tests", "cuda_race_tests"]
    subprocess.run(["cmake", "--build", arguments.build, "-j2", "--target", *names], check=True)
    comparing, racing = (Program(arguments.build.resolve(), name) for name in names)
    survived = 0
    for mutant in chosen:
        path = KERNELS / mutant.file
        original = path.read_text()
        kind = ("TttMlp" if "mlp" in mutant.file else "TttLinear" if "ttt" in mutant.file
                else "NormConv" if "norm" in mutant.file else "SharedQk")
        program = racing if mutant.is_barrier else comparing
        try:
            path.write_text(mutant.text)
            wrong = program.make(UNITS[mutant.file])
            found = "does not compile: " + wrong[-300:] if wrong else program.run(
                f"CudaRace{kind}*" if mutant.is_barrier else f"Cuda*{kind}*:*{kind}.*Float*")
        finally:
            path.write_text(original)
            program.make(UNITS[mutant.file])
        survived += not found or bool(wrong)
        print(f"{mutant.name}  |  {found or 'SURVIVED'}", flush=True)
    print(f"{len(chosen) - survived} passed, {survived} failed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())

"""Compiles kernels/cuda/*.cu and prints what ptxas says of every kernel: registers, spills, static shared memory.

    python3 tests/ptxas_report.py [--all] [FILE.cu ...]

For compute capability 8.0 and 9.0, and the fused kernels (ttt_linear, ttt_mlp, shared_qk, norm_conv) also for 10.0, with --all every
file. No GPU is needed; without nvcc nothing is checked. A file that does not compile fails, and so does a fused kernel
that spills more registers than it is known to. The last line is `N passed, N failed`: files times
architectures."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("80", "90a", "100a")
NEWEST = ARCHITECTURES[-1]
JOBS = 2
HOT = re.compile(r"ttt_(linear|mlp)|shared_qk|norm_conv")
# Bytes that are stored and loaded, at most: known shortfalls, to become zero (docs/performance.md).
ALLOWED_SPILLS = {
    ("mlp::forward_kernel<64, false>", "100a"): 24,  # sixteen warps leave 128 registers a thread, of which W takes 64
    ("linear_forward_kernel<64>", "100a"): 24,
    ("linear_forward_kernel<96>", "100a"): 16,
    ("linear_backward_kernel<96>", "80"): 16,
    ("linear_backward_kernel<96>", "90a"): 24,
    ("linear_backward_kernel<96>", "100a"): 72,
    ("shared_qk_backward_kernel<true, float>", "100a"): 32,  # fp32 activations, which are for comparing
}
FLAGS = ["-std=c++20", "-O3", f"-I{ROOT}", "-DFMT_CONSTEVAL=", "-DFMT_USE_CONSTEXPR=1", "--expt-relaxed-constexpr",
         "--extended-lambda", "-Xptxas", "-v"]

ENTRY = re.compile(r"Compiling entry function '([^']+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


class Kernel(NamedTuple):
    symbol: str
    registers: int
    spilled: int  # bytes stored and loaded
    shared: int


class Compilation(NamedTuple):
    source: Path
    architecture: str
    errors: str
    kernels: list[Kernel]


def find_nvcc() -> str | None:
    for folder in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if folder and os.access(f"{folder}/bin/nvcc", os.X_OK):
            return f"{folder}/bin/nvcc"
    return shutil.which("nvcc")


def kernels_in(log: str) -> list[Kernel]:
    """ptxas names an entry function, then its spills and what it uses; device functions in between have no entry."""
    kernels, symbol, spilled = [], None, 0
    for line in log.splitlines():
        if match := ENTRY.search(line):
            symbol, spilled = match.group(1), 0
        elif match := SPILLS.search(line):
            spilled += int(match.group(2)) + int(match.group(3))
        elif symbol and (match := USED.search(line)):
            shared = SHARED.search(line)
            kernels.append(Kernel(symbol, int(match.group(1)), spilled, int(shared.group(1)) if shared else 0))
            symbol = None
    return kernels


def compile_one(nvcc: str, source: Path, architecture: str, folder: str) -> Compilation:
    # The host's code is the same for all architectures, and reading it takes longer than compiling the kernels.
    kind = ["-c", "-Xcompiler", "-fsyntax-only"] if architecture == ARCHITECTURES[0] else ["-cubin"]
    result = subprocess.run(
        [nvcc, *FLAGS, "-gencode", f"arch=compute_{architecture},code=sm_{architecture}", *kind, str(source), "-o",
         f"{folder}/{source.stem}_{architecture}.o"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True)
    errors = result.stdout if result.returncode != 0 else ""
    return Compilation(source, architecture, errors, kernels_in(result.stdout))


def demangled(symbols: list[str]) -> dict[str, str]:
    """Without namespaces and arguments, so that a line fits a screen."""
    if not symbols or not shutil.which("c++filt"):
        return {symbol: symbol for symbol in symbols}
    names = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True,
                           check=True).stdout.splitlines()
    short = {}
    for symbol, name in zip(symbols, names):
        name = re.sub(r"ttt::kernels::cuda::|\(anonymous namespace\)::|_GLOBAL__N__\w+::|^void |ttt::", "", name)
        short[symbol] = re.sub(r"\([^()]*(\([^()]*\)[^()]*)*\)$", "", name)
    return short


def report(done: list[Compilation]) -> int:
    """The number of compilations that failed."""
    names = demangled(sorted({kernel.symbol for one in done for kernel in one.kernels}))
    rows = sorted((one.source.stem, names[kernel.symbol], one.architecture, kernel) for one in done
                  for kernel in one.kernels)
    width = min(90, max([len(f"{stem}: {name}") for stem, name, _, _ in rows], default=6))
    print(f"{'kernel':{width}}  {'sm':>4} {'registers':>9} {'spill':>6} {'shared':>6}")
    for stem, name, architecture, kernel in rows:
        label = f"{stem}: {name}"
        label = label if len(label) <= width else label[:width - 3] + "..."
        print(f"{label:{width}}  {architecture:>4} {kernel.registers:>9} {kernel.spilled:>6} {kernel.shared:>6}")
    failed = 0
    for one in done:
        spilling = [names[kernel.symbol] for kernel in one.kernels
                    if kernel.spilled > ALLOWED_SPILLS.get((names[kernel.symbol], one.architecture), 0)
                    and (HOT.search(one.source.stem) or HOT.search(names[kernel.symbol]))]
        if one.errors:
            print(f"{one.errors}\nptxas: {one.source.name} does not compile for sm_{one.architecture}")
        for name in spilling:
            print(f"ptxas: {one.source.name}: {name} spills on sm_{one.architecture}")
        failed += bool(one.errors or spilling)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every file for compute capability 10.0 too")
    parser.add_argument("files", nargs="*", type=Path, help="kernels/cuda/*.cu by default")
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        print("ptxas: nvcc is not installed: the CUDA kernels have not been compiled\n0 passed, 0 failed")
        return 0
    sources = [path.resolve() for path in arguments.files] or sorted((ROOT / "kernels/cuda").glob("*.cu"))
    # The largest first: they end together.
    work = sorted(((source, architecture) for source in sources for architecture in ARCHITECTURES
                   if architecture != NEWEST or arguments.all or HOT.search(source.stem)),
                  key=lambda item: -item[0].stat().st_size)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(JOBS) as pool:
        done = list(pool.map(lambda item: compile_one(nvcc, *item, folder), work))
    failed = report(done)
    print(f"{len(done) - failed} passed, {failed} failed")
    return 1 if failed or not done else 0


if __name__ == "__main__":
    sys.exit(main())

"""Counts the instructions of a kernel's main loop in its machine code (SASS) and predicts what bounds it.

    python3 tests/sass_report.py FILE.cu KERNEL [--arch 90a] [--blocks N] [--bytes N] [--by function|line|opcode|pipe]

KERNEL is part of the name that tests/ptxas_report.py prints, such as 'linear_forward_kernel<64>'. The main loop is the one with
the most tensor instructions (without any, the longest): an iteration of the fused TTT kernels is one mini-batch. Counted, for
one warp, is the longest way through it: of two branches the longer, an inner loop once, branches with code of the functions
in TAKEN as often as it says. --blocks: how many blocks a multiprocessor holds (default: as registers allow).
--bytes: what a block moves between global memory and itself in an iteration, as the benchmark counts.

Nothing here is measured: all that is assumed of the device is in DEVICE, ISSUE_SHARE and PIPES. By hand, not in CI. Needs nvcc, and
nvdisasm (PyPI: nvidia-cuda-nvdisasm) in CUDA_HOME, PATH or NVDISASM. `--self-test` checks the counting, without either."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ptxas_report import FLAGS, ROOT, demangled, find_nvcc, kernels_in

DEVICE = {  # H200
    "multiprocessors": 132,
    "clock": 1.755e9,
    "bytes_per_second": 4.3e12,  # a copy's; 4.8e12 on the data sheet
    "registers": 65536,
    "schedulers": 4,
}
# In which share of its cycles a scheduler issues, when it has 1, 2, or 3 and more warps: they wait for each other and for memory.
ISSUE_SHARE = (0.45, 0.575, 0.70)


class Pipe(NamedTuple):
    name: str
    pattern: str  # of an instruction's name with its modifiers
    cycles: float  # that one warp's instruction occupies it
    shared: bool  # by the multiprocessor's schedulers; else each has its own


# The first that matches. Throughputs: CUDA programming guide, compute capability 9.0; mma.sync: 62 % of the tensor peak.
PIPES = (
    Pipe("tensor", r"HMMA\.16816|IMMA|BMMA", 6.5, False),
    Pipe("tensor", r"HMMA", 3.25, False),
    Pipe("special functions", r"MUFU|F2F\b|F2I|I2F|FRND|POPC", 8, False),
    Pipe("fp32", r"FFMA|FADD|FMUL|HFMA2|HADD2|HMUL2", 1, False),
    Pipe("integer multiply", r"IMAD", 2, False),
    Pipe("memory", r"(LDS|STS|LDG|STG|LDGSTS|LDL|STL|LD|ST)(\.\w+)*\.128|(LDSM|STSM)(\.\w+)*\.4", 4, True),
    Pipe("memory", r"(LDS|STS|LDG|STG|LDGSTS|LDL|STL|LD|ST)(\.\w+)*\.64|(LDSM|STSM)(\.\w+)*\.2", 2, True),
    Pipe("memory", r"(LDS|STS|LDG|STG|LDGSTS|LDL|STL|LD|ST|LDSM|STSM|SHFL|MOVM|LDC|ATOM\w*|RED|ST?AS)\b", 1, True),
    Pipe("control", r"BRA|BAR|BSSY|BSYNC|EXIT|WARPSYNC|NOP|DEPBAR|LDGDEPBAR|CALL|RET|YIELD|BREAK|ERRBAR|MEMBAR|FENCE"
                    r"|UCGABAR\w*|CCTL|ACQBULK|SYNCS|ARRIVES", 0, False),
    Pipe("uniform", r"U[A-Z]|R2UR|S2UR|REDUX|VOTEU|CS2UR", 1, False),
    Pipe("integer, logic, moves", r"\w", 2, False),
)
# Of branches that hold code of these functions: how often a warp of a block of so many takes them.
TAKEN = {
    "store_checkpoint": lambda warps: 0,  # once in 128 mini-batches
    "load_checkpoint": lambda warps: 0,
    "warp_sum": lambda warps: 0,  # of TTT-Linear's backward: in the last mini-batch, if it is short
    "put_steps": lambda warps: 1 / warps,  # the warps take turns
    "put_scores_gradient": lambda warps: 1 / warps,
}


class Instruction(NamedTuple):
    address: int
    predicate: str
    name: str  # with modifiers
    operands: str
    lines: tuple[tuple[str, int], ...]  # file and line, then from where it was inlined


class Kernel(NamedTuple):
    instructions: list[Instruction]
    labels: dict[str, int]  # to the instruction's index
    threads: int  # of a block, at most; 0 when unknown


SECTION = re.compile(r"^\s*\.section\s+\.(text|nv\.info)\.([\w$]+)")
LABEL = re.compile(r"^(\.L_\w+):")
SOURCE = re.compile(r'//## File "([^"]+)", line (\d+)(?: inlined at "([^"]+)", line (\d+))?')
CODE = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
WORD = re.compile(r"\.word\s+0x([0-9a-f]+)")


def parse(listing: str) -> dict[str, Kernel]:
    """The kernels of a listing of nvdisasm."""
    kernels: dict[str, Kernel] = {}
    threads: dict[str, int] = {}
    kind, symbol, lines, is_inlined, awaits_threads = "", "", [], False, False
    for text in listing.splitlines():
        if match := SECTION.match(text):
            kind, symbol, lines = match.group(1), match.group(2), []
            if kind == "text":
                kernels[symbol] = Kernel([], {}, 0)
        elif kind == "nv.info":
            awaits_threads |= "EIATTR_MAX_THREADS" in text
            if awaits_threads and (match := WORD.search(text)):
                threads[symbol] = int(match.group(1), 16)
                awaits_threads = False
        elif kind == "text":
            if match := LABEL.match(text):
                kernels[symbol].labels[match.group(1)] = len(kernels[symbol].instructions)
            elif match := SOURCE.search(text):  # one line for each level, the innermost first
                lines = lines if is_inlined else []
                lines = [*lines, (match.group(1), int(match.group(2)))]
                is_inlined = match.group(3) is not None
            elif match := CODE.match(text):
                is_inlined = False
                address, predicate, name, operands = match.groups()
                kernels[symbol].instructions.append(
                    Instruction(int(address, 16), predicate or "", name, operands.strip(), tuple(lines)))
    return {symbol: kernel._replace(threads=threads.get(symbol, 0)) for symbol, kernel in kernels.items()}


# ---- control flow

TARGET = re.compile(r"`\((\.L_\w+)\)")


def successors(kernel: Kernel, index: int) -> list[int]:
    """Of the instruction at `index`. A warp's threads do not diverge where they meet: BRA.DIV is not taken."""
    one = kernel.instructions[index]
    following = [index + 1] if index + 1 < len(kernel.instructions) else []
    if one.name.startswith("BRA.DIV"):
        return following
    if one.name.startswith("BRA"):
        to = [kernel.labels[TARGET.search(one.operands).group(1)]]
        is_certain = not one.predicate and one.operands.startswith("`")
        return to if is_certain else following + to
    if one.name.split(".")[0] in ("EXIT", "RET", "BRX") and not one.predicate:
        return []
    return following


class Graph:
    """Basic blocks [first, last] of instructions, numbered in the order of the text, and the loops among them."""

    def __init__(self, kernel: Kernel):
        count = len(kernel.instructions)
        next_ones = [successors(kernel, i) for i in range(count)]
        leaders = {0} | {to for i in range(count) for to in next_ones[i] if next_ones[i] != [i + 1]}
        leaders |= {i + 1 for i in range(count - 1) if next_ones[i] != [i + 1]} | set(kernel.labels.values()) - {count}
        firsts = sorted(leaders)
        self.blocks = [(first, after - 1) for first, after in zip(firsts, [*firsts[1:], count])]
        number = {first: i for i, first in enumerate(firsts)}
        self.next = [[number[to] for to in next_ones[last]] for _, last in self.blocks]
        reached, work = {0}, [0]
        while work:
            new = set(self.next[work.pop()]) - reached
            reached |= new
            work += new
        self.next = [targets if block in reached else [] for block, targets in enumerate(self.next)]
        self.dominators = self._dominators()
        self.loops: dict[int, set[int]] = {}  # header: blocks
        for block, targets in enumerate(self.next):
            for header in targets:
                if header in self.dominators[block]:
                    self.loops.setdefault(header, {header}).update(self._body(block, header))

    def _dominators(self) -> list[set[int]]:
        everything = set(range(len(self.blocks)))
        before = [[b for b in everything if block in self.next[b]] for block in everything]
        found = [{0}] + [set(everything) for _ in self.blocks[1:]]
        changed = True
        while changed:
            changed = False
            for block in range(1, len(found)):
                now = {block} | (set.intersection(*(found[b] for b in before[block])) if before[block] else set())
                changed |= now != found[block]
                found[block] = now
        return found

    def _body(self, latch: int, header: int) -> set[int]:
        body, work = {header, latch}, [latch] if latch != header else []
        while work:
            block = work.pop()
            for b in range(len(self.blocks)):
                if block in self.next[b] and b not in body:
                    body.add(b)
                    work.append(b)
        return body

    def longest_path(self, header: int, avoid: set[int]) -> list[int]:
        """Blocks on the way with most instructions from the loop's header to one of its latches."""
        body = self.loops[header] - avoid
        best: dict[int, tuple[int, list[int]]] = {}

        def visit(block: int) -> tuple[int, list[int]]:
            if block not in best:
                first, last = self.blocks[block]
                ways = [visit(b) for b in self.next[block] if b in body and b not in self.dominators[block]]
                ways = [way for way in ways if way[1]]
                if header in self.next[block]:
                    ways.append((0, [header]))  # a sentinel: this way closes the loop
                length, rest = max(ways, default=(0, []))
                best[block] = (length + last - first + 1, [block, *rest]) if rest else (0, [])
            return best[block]

        return visit(header)[1][:-1]


class Loop(NamedTuple):
    instructions: list[Instruction]  # of one iteration, in no order
    taken: list[float]  # how often a warp comes by each
    notes: list[str]


def main_loop(kernel: Kernel) -> Loop:
    graph = Graph(kernel)
    if not graph.loops:
        sys.exit("sass: this kernel has no loop")

    def content(blocks: set[int]) -> list[Instruction]:
        return [kernel.instructions[i] for b in sorted(blocks)
                for i in range(graph.blocks[b][0], graph.blocks[b][1] + 1)]

    def weight(header: int) -> tuple[int, int]:
        body = content(graph.loops[header])
        return sum("HMMA" in one.name for one in body), len(body)

    header = max(graph.loops, key=weight)
    body = graph.loops[header]
    always = set.intersection(*(graph.dominators[b] for b in body if header in graph.next[b]))
    warps = max(1, -(-kernel.threads // 32))
    taken = {}  # of branches with functions of TAKEN
    for b in body - always:
        if inside := {f for one in content({b}) for f in functions_of(one)} & set(TAKEN):
            taken[b] = max(TAKEN[function](warps) for function in inside)
    rare = {b for b, often in taken.items() if often == 0}
    path = graph.longest_path(header, rare)
    notes = [f"inner loop of {len(content(graph.loops[h]))} instructions counted once"
             for h in graph.loops if h in path and h != header]
    for b in path:
        if taken.get(b, 1) < 1:
            notes.append(f"{len(content({b}))} instructions counted {taken[b]:.2f} times")
    if other := body - set(path):
        notes.append(f"{len(content(other))} instructions of other branches not counted")
    counted = [(one, taken.get(b, 1)) for b in path for one in content({b})]
    return Loop([one for one, _ in counted], [often for _, often in counted], notes)


# ---- the source

# A definition's name before its bracket: in the first column, of a struct's member, or on the line after launch bounds.
FUNCTION = re.compile(r"^(?:\w.*?[ *&]|  __device__(?: .*?)?[ *&]| {4}(?=\w+_kernel\())(\w+)(?:<[\w:, ]+>)?\(")


@lru_cache(maxsize=None)
def source_lines(file: str) -> list[str]:
    path = Path(file)
    return path.read_text().splitlines() if path.is_file() else []


@lru_cache(maxsize=None)
def function_at(file: str, line: int) -> str:
    """The function of a line of our sources: the nearest definition above it."""
    for text in reversed(source_lines(file)[:line]):
        if "__launch_bounds__" not in text and (match := FUNCTION.match(text.split("//")[0])):
            return match.group(1)
    return Path(file).name


def functions_of(one: Instruction) -> list[str]:
    """The innermost first."""
    return [function_at(file, line) for file, line in one.lines]


# ---- the report

def pipe_of(name: str) -> Pipe:
    return next(pipe for pipe in PIPES if re.match(pipe.pattern, name))


def count(loop: Loop, key: Callable[[Instruction], str]) -> Counter:
    counts: Counter = Counter()
    for one, often in zip(loop.instructions, loop.taken):
        counts[key(one)] += often
    return counts


def busy_cycles(loop: Loop, blocks: int, warps: int, num_bytes: int) -> dict[str, float]:
    """What one iteration of all `blocks` of a multiprocessor takes of each resource."""
    all_warps = blocks * warps
    of_scheduler = -(-all_warps // DEVICE["schedulers"])
    share = ISSUE_SHARE[min(of_scheduler, len(ISSUE_SHARE)) - 1]
    cycles = {"issue": sum(loop.taken) * of_scheduler / share}
    for one, often in zip(loop.instructions, loop.taken):
        pipe = pipe_of(one.name)
        busy = often * pipe.cycles * (all_warps if pipe.shared else of_scheduler)
        cycles[pipe.name] = cycles.get(pipe.name, 0) + busy
    if num_bytes:
        rate = DEVICE["bytes_per_second"] / DEVICE["multiprocessors"] / DEVICE["clock"]
        cycles["global memory"] = num_bytes * blocks / rate
    return cycles


def print_bounds(loop: Loop, blocks: int, warps: int, num_bytes: int) -> None:
    counts = count(loop, lambda one: pipe_of(one.name).name)
    counts["issue"] = sum(loop.taken)
    columns = [busy_cycles(loop, n, warps, num_bytes) for n in range(1, blocks + 1)]
    print(f"{'pipe':24}{'instructions':>13}   cycles with 1..{blocks} blocks a multiprocessor")
    for name in columns[0]:
        print(f"{name:24}{round(counts[name]) or '':>13}   " + "".join(f"{column[name]:>8.0f}" for column in columns))
    longest = [max(column, key=column.get) for column in columns]
    print(f"{'longest':24}{'':>13}   " + "".join(f"{name[:7]:>8}" for name in longest))
    if num_bytes:
        shares = (100 * column["global memory"] / column[name] for column, name in zip(columns, longest))
        print(f"{'% of the memory roofline':24}{'':>13}   " + "".join(f"{share:>8.0f}" for share in shares))


def print_by(loop: Loop, by: str) -> None:
    def key(one: Instruction) -> str:
        if by == "opcode":
            return ".".join(one.name.split(".")[:2])
        if by == "pipe":
            return f"{pipe_of(one.name).name}: {one.name.split('.')[0]}"
        if by == "function":
            own = [f for (file, _), f in zip(one.lines, functions_of(one)) if str(ROOT) in file and "simt.h" not in file]
            return " < ".join(own[:2]) or "?"
        file, line = next(((f, n) for f, n in one.lines if str(ROOT) in f and "simt.h" not in f), ("?", 0))
        text = source_lines(file)[line - 1].strip() if source_lines(file) else ""
        return f"{Path(file).name}:{line}: {text[:90]}"

    detail = count(loop, lambda one: f"{key(one)}\t{one.name.split('.')[0]}")
    for name, number in count(loop, key).most_common():
        of_it = [(f.split("\t")[1], n) for f, n in detail.most_common() if f.split("\t")[0] == name]
        print(f"{number:6.4g} {name:60} " + " ".join(f"{opcode}:{n:.3g}" for opcode, n in of_it[:8]))


def find_nvdisasm() -> str | None:
    for path in (os.environ.get("NVDISASM"), f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/nvdisasm"):
        if path and os.access(path, os.X_OK):
            return path
    return shutil.which("nvdisasm")


def disassemble(source: Path, architecture: str) -> tuple[str, dict[str, int]]:
    """The listing, and the registers of each symbol."""
    nvcc, nvdisasm = find_nvcc(), find_nvdisasm()
    if nvcc is None or nvdisasm is None:
        sys.exit("sass: needs nvcc and nvdisasm (PyPI: nvidia-cuda-nvdisasm; its path in NVDISASM)")
    with tempfile.TemporaryDirectory() as folder:
        cubin = f"{folder}/kernel.cubin"
        done = subprocess.run([nvcc, *FLAGS, "-lineinfo", f"-arch=sm_{architecture}", "-cubin", str(source), "-o", cubin],
                              cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            sys.exit(f"{done.stdout}\nsass: {source} does not compile for sm_{architecture}")
        listing = subprocess.run([nvdisasm, "-gi", cubin], capture_output=True, text=True, check=True).stdout
    return listing, {kernel.symbol: kernel.registers for kernel in kernels_in(done.stdout)}


def report(arguments: argparse.Namespace) -> None:
    listing, registers = disassemble(arguments.file.resolve(), arguments.arch)
    if arguments.listing:
        arguments.listing.write_text(listing)
    kernels = parse(listing)
    names = demangled(sorted(kernels))
    chosen = [symbol for symbol in kernels if arguments.kernel in names[symbol]]
    if len(chosen) != 1:
        sys.exit(f"sass: '{arguments.kernel}' is in the names of {len(chosen)} kernels; there are:\n  "
                 + "\n  ".join(names.values()))
    kernel = kernels[chosen[0]]
    warps = -(-kernel.threads // 32)
    blocks = arguments.blocks or DEVICE["registers"] // (-(-registers[chosen[0]] // 8) * 8 * 32 * warps)
    loop = main_loop(kernel)
    print(f"{names[chosen[0]]}, sm_{arguments.arch}: {warps} warps a block, {registers[chosen[0]]} registers; "
          f"{len(kernel.instructions)} instructions, {sum(loop.taken):.0f} in an iteration of the main loop")
    for note in loop.notes:
        print(f"  {note}")
    print_bounds(loop, blocks, warps, arguments.bytes)
    if arguments.by:
        print_by(loop, arguments.by)


SELF_TEST = """
	.section	.nv.info.kernel,"",@"SHT_CUDA_INFO"
	//----- nvinfo : EIATTR_MAX_THREADS
	.word 0x00000080
	.section	.text.kernel,"ax",@progbits
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0020*/              @!P0 BRA `(.L_x_3) ;
        /*0030*/                   LDS.128 R4, [R2] ;
        /*0040*/                   FADD R4, R4, R5 ;
        /*0050*/                   BRA `(.L_x_2) ;
.L_x_3:
        /*0060*/                   MUFU.RSQ R4, R5 ;
.L_x_2:
        /*0070*/                   BRA.DIV UR4, `(.L_x_5) ;
.L_x_6:
        /*0080*/               @P1 BRA `(.L_x_1) ;
        /*0090*/                   EXIT ;
.L_x_5:
        /*00a0*/                   SHFL.BFLY R4, R5 ;
        /*00b0*/                   BRA `(.L_x_6) ;
"""


def self_test() -> None:
    kernel = parse(SELF_TEST)["kernel"]
    assert kernel.threads == 128, kernel.threads
    loop = main_loop(kernel)
    names = [one.name.split(".")[0] for one in loop.instructions]  # not the start, the shorter branch, or where BRA.DIV goes
    assert names == ["HMMA", "BRA", "LDS", "FADD", "BRA", "BRA", "BRA"], names
    assert loop.notes == ["1 instructions of other branches not counted"], loop.notes
    cycles = busy_cycles(loop, 3, 4, 1000)
    assert cycles["issue"] == 7 * 3 / ISSUE_SHARE[2] and cycles["tensor"] == 6.5 * 3 and cycles["fp32"] == 3, cycles
    assert cycles["memory"] == 4 * 12, cycles
    assert abs(cycles["global memory"] - 3000 * 132 * 1.755e9 / 4.3e12) < 1e-6, cycles
    for name, pipe in (("IMAD.MOV.U32", "integer multiply"), ("LDSM.16.M88.4", "memory"), ("LDGSTS.E.BYPASS.128", "memory"),
                       ("ULDC.64", "uniform"), ("F2FP.BF16.F32.PACK_AB", "integer, logic, moves"), ("LDGDEPBAR", "control")):
        assert pipe_of(name).name == pipe, (name, pipe_of(name))
    assert pipe_of("LDSM.16.MT88.4").cycles == 4 and pipe_of("STS.64").cycles == 2
    print("1 passed, 0 failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("kernel", nargs="?")
    parser.add_argument("--arch", default="90a")
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--bytes", type=int, default=0)
    parser.add_argument("--by", choices=("function", "line", "opcode", "pipe"))
    parser.add_argument("--listing", type=Path, help="where to write the whole listing")
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    if arguments.self_test:
        self_test()
    elif arguments.file is None or arguments.kernel is None:
        parser.error("FILE.cu and KERNEL are needed")
    else:
        report(arguments)


if __name__ == "__main__":
    main()

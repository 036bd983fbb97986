"""Includes follow the arrows of docs/architecture.md, start at the repository root, and bring in a
third-party library only where that page lets it in."""

import re
import sys
from pathlib import Path

import source_tree
from source_tree import Problem

# The module of a file is the longest prefix that fits.
MODULES = ("core/base", "kernels", "configs", "core", "dist", "data", "launch", "tests")
MAY_INCLUDE = {
    "core/base": (),
    "kernels": ("core/base",),
    "configs": ("core/base",),
    "core": ("core/base", "kernels", "configs"),
    "dist": ("core/base", "kernels", "configs", "core"),
    "data": ("core/base", "configs"),
    "launch": ("core/base", "kernels", "configs", "core", "dist", "data"),
    "tests": MODULES,
}

# (library, its headers, where it may be included). tests/ may include everything.
LIBRARIES = (
    ("fmt", r"fmt/", r".*"),
    ("spdlog", r"spdlog/", r"core/base/log\.cpp"),
    ("the CUDA runtime", r"cuda(_runtime|_runtime_api|_bf16|_fp16|_fp8|_pipeline)?\.h|cuda/|driver_types\.h",
     r"kernels/cuda/.*|core/base/(.*_cuda\..*|cuda_check\.h)|dist/.*"),
    ("cuBLASLt, CUB or a device library", r"cublas\w*\.h|cub/|cudnn\w*\.h|mma\.h|cooperative_groups",
     r"kernels/cuda/.*"),
    ("BLAS or oneDNN", r"cblas\.h|openblas|dnnl|oneapi/", r"kernels/cpu/.*"),
    ("OpenMP", r"omp\.h", r"kernels/cpu/.*"),
    ("SIMD intrinsics", r"\w*intrin\.h", r"kernels/cpu/.*"),
    ("Protobuf", r"google/protobuf/", r"(configs|core(?!/base/)|data|launch)/.*"),
    ("MPI", r"mpi\.h|mpi-ext\.h", r"(dist|launch)/.*"),
    ("NCCL", r"nccl\.h", r"dist/.*"),
    ("HDF5", r"hdf5(_hl)?\.h|H5\w*\.h", r"data/.*"),
    ("zstd", r"zstd\w*\.h|zdict\.h", r"data/.*"),
    ("libarchive", r"archive(_entry)?\.h", r"data/.*"),
    ("Arrow", r"(arrow|parquet)/", r"data/corpus/parquet_module\.cpp"),
    ("zlib", r"zlib\.h", r"data/.*"),
    ("PCRE2 or utf8proc", r"pcre2\.h|utf8proc\.h", r"data/.*"),
    ("SentencePiece", r"sentencepiece\w*\.h", r"data/.*"),
    ("xxHash", r"xxhash\.h", r"data/.*"),
    ("OpenSSL", r"openssl/", r"data/.*"),
    ("JSON", r"nlohmann/", r"(data|launch)/.*"),
    ("CLI11", r"CLI/", r"launch/.*"),
    ("GoogleTest", r"gtest/|gmock/", r"(?!)"),
    ("Google Benchmark", r"benchmark/", r"(?!)"),
)
STANDARD = re.compile(
    r"[a-z_0-9]+"  # <vector>, <cstdint>
    r"|(sys|netinet|arpa|linux|asm)/\w+\.h"
    r"|net/if\.h"
    r"|(dirent|dlfcn|errno|execinfo|fcntl|fenv|glob|ifaddrs|limits|math|netdb|poll|pthread|pwd|sched|semaphore|signal"
    r"|spawn|stdint|stdio|stdlib|string|syslog|termios|time|ucontext|unistd|malloc)\.h")
INCLUDE = re.compile(r'\s*#\s*include\s*([<"])([^>"]+)[>"]')
OMP_PRAGMA = re.compile(r"\s*#\s*pragma\s+omp\b")


def module_of(path: str) -> str | None:
    fitting = [module for module in MODULES if path.startswith(module + "/")]
    return max(fitting, key=len) if fitting else None


def quoted_problem(root: Path, module: str, target: str) -> str | None:
    target_module = module_of(target)
    generated = re.fullmatch(r"configs/\w+\.pb\.h", target)
    if target_module is None or (not generated and not (root / target).is_file()):
        return f'"{target}" is not a path from the repository root'
    if generated and module not in ("configs", "core", "data", "launch", "tests"):
        return f'"{target}": Protobuf may not be included in {module}'
    if target_module != module and target_module not in MAY_INCLUDE[module]:
        return f'{module} may not include {target_module} ("{target}")'
    return None


def library_problem(path: str, module: str, target: str) -> str | None:
    for library, headers, places in LIBRARIES:
        if re.match(f"(?:{headers})", target):
            if library == "Google Benchmark":
                allowed = path.startswith("tests/bench/")
            else:
                allowed = module == "tests" or re.fullmatch(places, path)
            return None if allowed else f"<{target}>: {library} may not be included here"
    if not STANDARD.fullmatch(target):
        return f"<{target}> belongs to no library that docs/architecture.md lists"
    return None


def check(root: Path) -> tuple[list[Problem], int]:
    problems = []
    names = [name for name in source_tree.with_suffix(source_tree.files(root), source_tree.CPP_SUFFIXES)
             if module_of(name)]
    for name in names:
        module = module_of(name)
        for number, line in enumerate(source_tree.lines(root, name), 1):
            message = None
            if match := INCLUDE.match(line):
                is_quoted, target = match.group(1) == '"', match.group(2)
                message = (quoted_problem(root, module, target) if is_quoted
                           else library_problem(name, module, target))
            elif OMP_PRAGMA.match(line) and not name.startswith(("kernels/cpu/", "tests/")):
                message = "OpenMP pragmas belong in kernels/cpu"
            if message:
                problems.append(Problem(name, number, message))
    return problems, len(names)


if __name__ == "__main__":
    sys.exit(source_tree.run("include direction", check))

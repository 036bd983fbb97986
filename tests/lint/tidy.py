"""clang-tidy over the .cpp files of build/compile_commands.json. Tests are left out: they compile with the same warnings,
and GoogleTest's macros would cost more time here than the product itself.

    python3 tests/lint/tidy.py               the whole tree
    python3 tests/lint/tidy.py REVISION      .cpp files changed since REVISION, or that include a header changed since
    python3 tests/lint/tidy.py --jobs N      processes; the number of cores by default

The headers take most of the time. So the files of a folder with the same flags are checked as one translation unit, which
includes them one after the other; where two of them use a local name for different things, the unit is halved.
The build folder is $TTT_BUILD_DIR, or build. Exit status 1 when anything is found, 2 without a configured build."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = (ROOT / os.environ.get("TTT_BUILD_DIR", "build")).resolve()
WORK = BUILD / "tidy"
MOST_FILES = 12  # in a unit: memory, and an even load
# .clang-tidy's filter, with the files that a unit includes.
REPORTED = r"(^|/)(core|kernels|configs|dist|data|launch)/[a-z0-9_/]+\.(h|cpp)$"
# clang cannot read GCC's omp.h: it gets the declarations alone.
OMP = """#pragma once
extern "C" {
int omp_get_max_threads(void);
int omp_get_num_procs(void);
int omp_get_num_threads(void);
int omp_get_thread_num(void);
int omp_in_parallel(void);
double omp_get_wtime(void);
void omp_set_dynamic(int);
void omp_set_num_threads(int);
}
"""


def flags_by_file() -> dict[str, tuple[str, ...]]:
    """What the product's .cpp files in the source tree are compiled with."""
    found = {}
    for entry in json.loads((BUILD / "compile_commands.json").read_text()):
        path = Path(os.path.normpath(Path(entry["directory"]) / entry["file"]))
        if path.suffix != ".cpp" or not path.is_relative_to(ROOT) or not path.exists():
            continue
        if path.is_relative_to(BUILD) or path.is_relative_to(ROOT / "tests"):
            continue
        words = shlex.split(entry["command"])
        first = next(i for i, word in enumerate(words) if word.startswith("-"))  # behind the compiler
        found[str(path.relative_to(ROOT))] = tuple(words[first:words.index("-o")])
    return found


def changed_since(revision: str, files: list[str]) -> list[str]:
    def git(*words: str) -> list[str]:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()

    changed = {*git("diff", "--name-only", "--diff-filter=d", revision), *git("ls-files", "--others", "--exclude-standard")}
    headers = {f'"{name}"' for name in changed if name.endswith(".h")}
    return [name for name in files
            if name in changed or any(header in (ROOT / name).read_text() for header in headers)]


def units_of(flags: dict[str, tuple[str, ...]]) -> list[list[str]]:
    groups: dict[tuple, list[str]] = {}
    for name in sorted(flags):
        groups.setdefault((os.path.dirname(name), flags[name]), []).append(name)
    return [group[i:i + MOST_FILES] for group in groups.values() for i in range(0, len(group), MOST_FILES)]


def check(unit: list[str], flags: tuple[str, ...]) -> str:
    """What clang-tidy finds in these files, or nothing."""
    source = WORK / (re.sub(r"\W", "_", unit[0]) + f"_{len(unit)}.cpp")
    source.write_text("".join(f'#include "{name}"\n' for name in unit))
    options = ["--", *flags, f"-I{ROOT}", f"-isystem{WORK}"]
    done = subprocess.run(["clang-tidy", "--quiet", f"--header-filter={REPORTED}", source, *options], cwd=BUILD,
                          capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    found = done.stdout + done.stderr
    if "clang-diagnostic-error" in found and len(unit) > 1:
        half = len(unit) // 2
        return check(unit[:half], flags) + check(unit[half:], flags)
    noise = r"\d+ warnings? (generated|treated)|Suppressed|Use -header-filter"
    return "".join(line + "\n" for line in found.splitlines() if not re.match(noise, line))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if not (BUILD / "compile_commands.json").exists():
        print(f"tidy: {BUILD}/compile_commands.json is missing: run cmake --preset release first", file=sys.stderr)
        return 2
    flags = flags_by_file()
    if arguments.revision:
        flags = {name: flags[name] for name in changed_since(arguments.revision, list(flags))}
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "omp.h").write_text(OMP)
    print(f"clang-tidy: {len(flags)} files", flush=True)
    failed = False
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for found in pool.map(lambda unit: check(unit, flags[unit[0]]), units_of(flags)):
            if found:
                failed = True
                print(found, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

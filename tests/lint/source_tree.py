"""What the lint scripts share: the files of the tree, a finding, and the main function."""

import subprocess
import sys
from pathlib import Path
from typing import Callable, Iterable, NamedTuple

TOP_FOLDERS = ("configs", "core", "data", "dist", "docs", "kernels", "launch", "tests")
CPP_SUFFIXES = (".h", ".cpp", ".cu", ".cuh")


class Problem(NamedTuple):
    file: str
    line: int
    message: str


def files(root: Path) -> list[str]:
    """Paths relative to root of what git tracks or would track; of everything when root is no git tree."""
    if (root / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
        return sorted(name for name in set(listed) if name and (root / name).is_file())
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def with_suffix(names: Iterable[str], suffixes: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.endswith(suffixes)]


def lines(root: Path, name: str) -> list[str]:
    return (root / name).read_text(encoding="utf-8", errors="replace").splitlines()


def run(title: str, check: Callable[[Path], tuple[list[Problem], int]]) -> int:
    """Prints `file:line: message` for each problem and a summary. The tree is argv[1] or this repository."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2]
    problems, checked = check(root)
    for problem in sorted(problems):
        print(f"{problem.file}:{problem.line}: {problem.message}")
    print(f"{title}: {checked} files, {len(problems)} problems")
    return 1 if problems else 0

"""C++ files have at most 400 lines; files and folders are named in snake_case; the top level holds only
what docs/architecture.md says."""

import re
import sys
from pathlib import Path

import source_tree
from source_tree import Problem

MAX_LINES = 400
SNAKE_CASE = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*(\.[a-z0-9_]+)*")
FIXED_NAMES = {"CMakeLists.txt", "README.md"}
TOP_FILES = {"CMakeLists.txt", "CMakePresets.json", "README.md", "LICENSE", "CONTRIBUTING.md", "SECURITY.md"}


def name_problem(name: str) -> str | None:
    parts = name.split("/")
    if len(parts) == 1:
        if name.startswith(".") or name in TOP_FILES:
            return None
        return "the top level holds only the folders, the CMake files, README, LICENSE and CONTRIBUTING"
    if parts[0].startswith("."):
        return None
    if parts[0] not in source_tree.TOP_FOLDERS:
        return f"{parts[0]}/ is not a folder of the floor plan"
    for part in parts:
        if part not in FIXED_NAMES and not part.startswith(".") and not SNAKE_CASE.fullmatch(part):
            return f"{part} is not snake_case"
    return None


def check(root: Path) -> tuple[list[Problem], int]:
    problems = []
    names = source_tree.files(root)
    for name in names:
        if message := name_problem(name):
            problems.append(Problem(name, 1, message))
        if name.endswith(source_tree.CPP_SUFFIXES):
            count = len(source_tree.lines(root, name))
            if count > MAX_LINES:
                problems.append(Problem(name, MAX_LINES + 1, f"{count} lines; the limit is {MAX_LINES}"))
    return problems, len(names)


if __name__ == "__main__":
    sys.exit(source_tree.run("file limits", check))

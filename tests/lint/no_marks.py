"""No leftovers: marks of unfinished work without an issue number, commented-out code, paths of somebody's
machine, and tests that skip themselves without being listed in tests/README.md."""

import re
import sys
from pathlib import Path

import source_tree
from source_tree import Problem

CODE_SUFFIXES = source_tree.CPP_SUFFIXES + (".py", ".sh", ".proto", ".textproto", ".cmake", "CMakeLists.txt")
TEXT_SUFFIXES = CODE_SUFFIXES + (".md", ".txt", ".json", "LICENSE", ".clang-tidy", ".clang-format", ".ci/run")
# The scripts that look for marks have to spell them, and their self-test plants them.
EXEMPT = ("tests/lint/no_marks.py", "tests/lint/self_test.py")

MARK = re.compile(r"\b(TODO|FIXME|XXX)\b(?!\(#\d+\))")
MACHINE_PATH = re.compile(r"(?<![\w.}~-])/(home|root|work|Users|mnt|scratch|workspace)/\w")

# A comment line that is a whole statement of C++. Prose and formulas are left alone: a line must both begin
# and end like code.
CPP_CODE = re.compile(
    r"\s*//\s*("
    r"#\s*(include|define|ifdef|ifndef|endif|pragma)\b.*"
    r"|(return|throw)\b.*;|(break|continue);"
    r"|(if|for|while|switch) \(.*[;{]"
    r"|(const|constexpr|static|auto|int|float|double|bool|std::\w+)\b[\w:<>&*, ]+(=.*|\{.*|\(.*)?;"
    r"|[\w.:>-]+\([^()]*(\([^()]*\)[^()]*)*\);"
    r"|\} ?(else \{)?"
    r")\s*")
PYTHON_CODE = re.compile(
    r"\s*#\s*(import \w+(\.\w+)*|from [\w.]+ import .*|def \w+\(.*\).*:|class \w+.*:|if .*[=<>(].*:"
    r"|(print|assert\w*)\(.*\)|\w+ = \w+\(.*\))\s*")

TEST_NAME = re.compile(r"\b(?:TYPED_)?TEST(?:_F|_P)?\(\s*(\w+)\s*,\s*(\w+)\s*\)")
SKIP = re.compile(r"\bGTEST_SKIP\b|\bDISABLED_\w*")
ALLOWED_SKIP = re.compile(r"- `(\w+\.\w+)`: \S.*")


def allowed_skips(root: Path) -> dict[str, int]:
    """Test name to line, from the section "Allowed skips" of tests/README.md."""
    readme = root / "tests/README.md"
    allowed, is_listed = {}, False
    if readme.is_file():
        for number, line in enumerate(source_tree.lines(root, "tests/README.md"), 1):
            if line.startswith("#"):
                is_listed = line.lstrip("# ").strip() == "Allowed skips"
            elif is_listed and (match := ALLOWED_SKIP.fullmatch(line.strip())):
                allowed[match.group(1)] = number
    return allowed


def skip_problems(root: Path, name: str, text: list[str], allowed: dict[str, int], seen: set) -> list[Problem]:
    problems, test = [], "(no test)"
    for number, line in enumerate(text, 1):
        if match := TEST_NAME.search(line):
            test = f"{match.group(1)}.{match.group(2)}"
        if SKIP.search(line):
            seen.add(test)
            if test not in allowed:
                problems.append(Problem(name, number, f"{test} skips itself and tests/README.md does not list it"))
    return problems


def check(root: Path) -> tuple[list[Problem], int]:
    problems, allowed, seen = [], allowed_skips(root), set()
    names = [name for name in source_tree.with_suffix(source_tree.files(root), TEXT_SUFFIXES) if name not in EXEMPT]
    for name in names:
        text = source_tree.lines(root, name)
        commented = (CPP_CODE if name.endswith(source_tree.CPP_SUFFIXES)
                     else PYTHON_CODE if name.endswith(".py") else None)
        for number, line in enumerate(text, 1):
            if name.endswith(CODE_SUFFIXES) and (match := MARK.search(line)):
                problems.append(Problem(name, number, f"{match.group(1)} without an issue number: write "
                                        f"{match.group(1)}(#123) or do it"))
            if MACHINE_PATH.search(line):
                problems.append(Problem(name, number, "an absolute path of somebody's machine"))
            if commented and commented.fullmatch(line):
                problems.append(Problem(name, number, "commented-out code"))
        if name.startswith("tests/") and name.endswith(source_tree.CPP_SUFFIXES):
            problems += skip_problems(root, name, text, allowed, seen)
    for test in sorted(set(allowed) - seen):
        problems.append(Problem("tests/README.md", allowed[test], f"{test} is listed and skips nothing"))
    return problems, len(names)


if __name__ == "__main__":
    sys.exit(source_tree.run("leftovers", check))

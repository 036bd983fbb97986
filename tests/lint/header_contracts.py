"""Each header of an op (kernels/*.h) or a mixer (core/mixers/*.h) opens with its contract: the equation, then
`Dims:`, `Numerics:`, `Errors:` and `Source:`."""

import re
import sys
from pathlib import Path

import source_tree
from source_tree import Problem

LABELS = ("Dims", "Numerics", "Errors", "Source")
CONTRACT_HEADER = re.compile(r"(kernels|core/mixers)/[^/]+\.h")


def opening_comment(text: list[str]) -> list[str]:
    """The comment lines before the first line of code."""
    comment = []
    for line in text:
        stripped = line.strip()
        if stripped.startswith("//"):
            comment.append(stripped)
        elif stripped and stripped != "#pragma once":
            break
    return comment


def check(root: Path) -> tuple[list[Problem], int]:
    problems = []
    names = [name for name in source_tree.files(root) if CONTRACT_HEADER.fullmatch(name)]
    for name in names:
        comment = opening_comment(source_tree.lines(root, name))
        for label in LABELS:
            if not any(re.match(rf"//[/!]? *(.*[ .])?{label}: *\S", line) for line in comment):
                problems.append(Problem(name, 1, f"the opening comment has no `{label}:`"))
    return problems, len(names)


if __name__ == "__main__":
    sys.exit(source_tree.run("header contracts", check))

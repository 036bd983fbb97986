"""Time that is measured or waited for comes from a clock that nobody sets (core/base/timer.h): one that an administrator or
NTP moves would end a watchdog's limit early, or never. The files that tell the date are listed with their reason."""

import re
import sys
from pathlib import Path

import source_tree
from source_tree import Problem

ALLOWED = {
    "launch/collective_timing.cpp": "says how far the hosts' clocks are apart",
    "launch/supervise.sh": "a number that no other supervisor has",
    "launch/tensorboard.cpp": "TensorBoard shows the date of an event",
}

CPP = re.compile(r"\b(system_clock|high_resolution_clock|utc_clock|CLOCK_REALTIME\w*|gettimeofday|timespec_get|"
                 r"time\((?:nullptr|NULL|0|&\w+)\))")
PYTHON = re.compile(r"\b(time\.time(?:_ns)?\(|datetime\.(?:datetime\.)?(?:now|utcnow)\()")
SHELL = re.compile(r"\b(date \+%s|EPOCH(?:SECONDS|REALTIME))")
PATTERNS = ((source_tree.CPP_SUFFIXES, CPP), ((".py",), PYTHON), ((".sh",), SHELL))
# This script spells what it looks for, and its self-test plants it.
EXEMPT = ("tests/lint/clocks.py", "tests/lint/self_test.py")


def check(root: Path) -> tuple[list[Problem], int]:
    problems, checked, used = [], 0, set()
    for name in source_tree.files(root):
        pattern = next((pattern for suffixes, pattern in PATTERNS if name.endswith(suffixes)), None)
        if pattern is None or name in EXEMPT:
            continue
        checked += 1
        for number, line in enumerate(source_tree.lines(root, name), 1):
            if not (match := pattern.search(line)):
                continue
            used.add(name)
            if name not in ALLOWED:
                problems.append(Problem(name, number, f"{match.group(1)} can jump: use core/base/timer.h or time.monotonic, "
                                        "or list the file in tests/lint/clocks.py with the reason"))
    for name in ALLOWED:
        if (root / name).exists() and name not in used:
            problems.append(Problem("tests/lint/clocks.py", 1, f"{name} is listed and tells no date"))
    return problems, checked


if __name__ == "__main__":
    sys.exit(source_tree.run("clocks", check))

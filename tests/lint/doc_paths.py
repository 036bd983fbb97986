"""Backticked repository paths and relative links in *.md files lead somewhere, and so does every page of docs/
that a source file names.

Checked is every word inside single backticks that starts with a folder of the floor plan, and every link
target without a scheme. `<op>` or `NAME` in a path stands for anything and `*` is a glob: such a path is
not looked up when it has `<` or a capital word, and must match something when it has only `*`."""

import re
import sys
from pathlib import Path

import source_tree
from source_tree import Problem

CODE_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
PAGE = re.compile(r"\bdocs/\w+\.md\b")
PLACEHOLDER = re.compile(r"[<>{}$|…]|\.\.\.|(^|/)[A-Z][A-Z_]+(/|$)")


def path_exists(root: Path, path: str) -> bool:
    if "*" in path:
        return any(root.glob(path))
    return (root / path).exists()


def span_paths(span: str) -> list[str]:
    words = re.split(r"[\s,;()=]+", span)
    paths = []
    for word in words:
        word = re.sub(r":\d+$", "", word.strip("'\"").rstrip(".:"))
        if word.split("/")[0] in source_tree.TOP_FOLDERS and "/" in word and not PLACEHOLDER.search(word):
            paths.append(word)
    return paths


def check(root: Path) -> tuple[list[Problem], int]:
    problems = []
    names = source_tree.with_suffix(source_tree.files(root), (".md",))
    for name in names:
        is_fenced = False
        for number, line in enumerate(source_tree.lines(root, name), 1):
            if line.lstrip().startswith("```"):
                is_fenced = not is_fenced
            if is_fenced:
                continue
            for span in CODE_SPAN.findall(line):
                for path in span_paths(span):
                    if not path_exists(root, path):
                        problems.append(Problem(name, number, f"`{path}` does not exist"))
            for target in LINK.findall(CODE_SPAN.sub("", line)):
                path = target.split("#")[0]
                if path and not SCHEME.match(target) and not (root / name).parent.joinpath(path).exists():
                    problems.append(Problem(name, number, f"the link to {target} leads nowhere"))
    sources = source_tree.with_suffix(source_tree.files(root), source_tree.CPP_SUFFIXES + (".proto", ".sh", ".py"))
    for name in sources:
        if name == "tests/lint/self_test.py":
            continue
        for number, line in enumerate(source_tree.lines(root, name), 1):
            for page in PAGE.findall(line):
                if not (root / page).is_file():
                    problems.append(Problem(name, number, f"{page} does not exist"))
    return problems, len(names) + len(sources)


if __name__ == "__main__":
    sys.exit(source_tree.run("paths in the documentation", check))

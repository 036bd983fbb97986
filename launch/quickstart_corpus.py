#!/usr/bin/env python3
"""Turns the module dump of a commentary (mod2imp's format, standard input) into JSON lines.

Entries are headed "$$$Book chapter:verse"; all entries of a chapter make one document, so documents are
whole and long (the commentary on one psalm, 60 KB in the median). Every n-th document goes to the second
file, whole: nothing of it is seen in training.
"""
import json
import re
import sys


def documents(lines):
    """Yields (title, text) for every chapter, in the order of the dump."""
    title, parts = None, []
    for line in lines:
        if line.startswith("$$$"):
            heading = re.match(r"\$\$\$(.+) (\d+):\d+$", line.strip())
            chapter = f"{heading[1]} {heading[2]}" if heading else None
            if chapter != title:
                if title and parts:
                    yield title, "".join(parts).strip()
                title, parts = chapter, []
        elif title:
            parts.append(line)
    if title and parts:
        yield title, "".join(parts).strip()


def main():
    train_path, validation_path, every = sys.argv[1], sys.argv[2], int(sys.argv[3])
    counts = [0, 0]
    with open(train_path, "w", encoding="utf-8") as train, open(validation_path, "w", encoding="utf-8") as validation:
        for number, (title, text) in enumerate(documents(sys.stdin), start=1):
            if not text:
                continue
            held_out = number % every == 0
            counts[held_out] += 1
            json.dump({"title": title, "text": text}, validation if held_out else train, ensure_ascii=False)
            (validation if held_out else train).write("\n")
    print(f"{counts[0]} documents to train on, {counts[1]} held out")


if __name__ == "__main__":
    main()

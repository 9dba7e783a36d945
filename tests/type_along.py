"""Runs the blocks of a page in the current folder: `python type_along.py < BLOCKS.json`, pairs of language and text.

One process for a page: each command and each Python block begins as a new one would, but imports are paid once.
"""

from __future__ import annotations

import json
import shlex
import sys

from tokenshard.cli.main import main

for language, block in json.load(sys.stdin):
    if language == "python":
        print(block, file=sys.stderr)
        exec(compile(block, "block", "exec"), {"__name__": "__main__"})
        continue
    for line in block.splitlines():
        print("$", line, file=sys.stderr)
        words = shlex.split(line, comments=True)
        if words[:1] != ["tokenshard"]:
            sys.exit("only tokenshard commands are run")
        try:
            main(words[1:])
        except SystemExit as end:
            if end.code:
                sys.exit(f"exit code {end.code}")

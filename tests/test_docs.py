"""What the documentation tells people to type exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from netloom.cli import app

ROOT = Path(__file__).parent.parent
# The help itself; pages about the benchmarks' scripts, and about what was tried once.
OTHERS = ("cli.md", "performance.md", "log.md")
PAGES = [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in OTHERS)]
VERBS = {
    name: {"--help", *(option for parameter in command.params for option in parameter.opts)}
    for name, command in vars(typer.main.get_command(app))["commands"].items()
}
OTHER_PROGRAMS = re.compile(r"(python|pip|tensorboard|ray|\./|scripts/)")


def passages(text: str) -> Iterator[str]:
    """Each line of the blocks of code, without its comment, and each piece of code in a sentence."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from (line.partition(" #")[0].strip() for line in block.replace("\\\n", " ").splitlines())
    for piece in re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)):
        yield " ".join(piece.split())


def unknown_options(text: str) -> list[str]:
    """Options that the verb in front of them does not have, or that none has, with the passage."""
    found = []
    anywhere = {"--version", *(option for options in VERBS.values() for option in options)}
    for passage in passages(text):
        if OTHER_PROGRAMS.match(passage):
            continue
        verb = re.match(r"(?:.*\bnetloom )?([a-z-]+)\b", passage)
        known = VERBS.get(verb[1], anywhere) if verb else anywhere
        found += [
            f"{option}: {passage}" for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", passage) if option not in known
        ]
    return found


@pytest.mark.parametrize("page", PAGES, ids=[path.name for path in PAGES])
def test_options_exist(page: Path) -> None:
    assert unknown_options(page.read_text(encoding="utf-8")) == []


def test_what_does_not_exist_is_found() -> None:
    text = "`--epochs`, `--resume`, `evaluate --resume RUN`, `tensorboard --logdir runs`\n"
    text += "```\nnetloom cv x --seeds 3 # --no\n```"
    assert unknown_options(text) == [
        "--seeds: netloom cv x --seeds 3",
        "--epochs: --epochs",
        "--resume: evaluate --resume RUN",
    ]

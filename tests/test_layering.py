"""A module imports only from rows above its own or from its own folder (docs/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "netloom"
ROWS = [
    {"errors"},
    {
        "runtime",
        "randomness",
        "durations",
        "files",
        "plain_yaml",
        "validation",
        "progress",
        "memory",
        "torchvision_shim",
        "compiler_import",
    },
    {"data", "kernels"},
    {"models"},
    {"metrics"},
    {"inference"},
    {"features"},
    {"training"},
    {"parallel"},
    {"evaluation", "tuning"},
    {"report"},
    {"recipe"},
    {"run_values"},
    {"run_facts"},
    {"run"},
    {"workflows"},
    {"cli", "sklearn"},
    {"__main__"},
]
ROW_OF = {name: number for number, row in enumerate(ROWS) for name in row}


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("netloom.")}


MODULES = sorted(p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py")


def test_every_module_has_a_row() -> None:
    assert {part_of(path) for path in MODULES} <= set(ROW_OF)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_upwards(path: Path) -> None:
    own = part_of(path)
    wrong = {part for part in imported_parts(path) if part != own and ROW_OF[part] >= ROW_OF[own] and ROW_OF[part] != 1}
    assert not wrong, f"{own} imports from {wrong}, which are not above it"

"""Which tests carry a marker, for pages that say what is shown by which test."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]


class Shown(NamedTuple):
    """A test that shows what its marker names."""

    path: Path
    name: str

    @property
    def link(self) -> str:
        """The sentence of its name, leading to its file."""
        sentence = self.name.removeprefix("test_").replace("_", " ")
        return f"[{sentence}](../{self.path.relative_to(ROOT)})"


def shown(marker: str) -> dict[Any, list[Shown]]:
    """The tests by each argument of this marker on them."""
    found: dict[Any, list[Shown]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for argument in _arguments(node, marker):
                    found.setdefault(argument, []).append(Shown(path, node.name))
    return found


def _arguments(test: ast.FunctionDef, marker: str) -> list[Any]:
    return [
        ast.literal_eval(argument)
        for decorator in test.decorator_list
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == f"pytest.mark.{marker}"
        for argument in decorator.args
    ]

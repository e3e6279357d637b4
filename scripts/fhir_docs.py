"""Write what docs/fhir.md and docs/fhir-conformance.md say of the fact-books and the tests.

Usage: python scripts/fhir_docs.py. A contract test compares the pages with what this makes.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
LEVELS = {"shall": "demanded", "expected": "expected", "beyond": "more"}


class Proof(NamedTuple):
    """A test that names the requirements it proves."""

    path: Path
    name: str

    @property
    def link(self) -> str:
        """The sentence of its name, leading to its file."""
        sentence = self.name.removeprefix("test_").replace("_", " ")
        return f"[{sentence}](../{self.path.relative_to(ROOT)})"


# --- the checklist ---------------------------------------------------------------------------------------------


def proofs() -> dict[str, list[Proof]]:
    """The tests of each requirement, by the marker `requirement`."""
    found: dict[str, list[Proof]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for requirement in marked(node):
                    found.setdefault(requirement, []).append(Proof(path, node.name))
    return found


def marked(test: ast.FunctionDef) -> Iterator[str]:
    """The arguments of its requirement markers."""
    for decorator in test.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.requirement":
            yield from (ast.literal_eval(argument) for argument in decorator.args)


def requirements() -> dict[str, dict[str, Any]]:
    """Every section of capability/requirements.toml by its letter."""
    return tomllib.loads((ROOT / "capability" / "requirements.toml").read_text("utf-8"))


def unknown() -> set[str]:
    """What tests name that is no requirement, or one that is said not to be built."""
    rows = {f"{letter}{number}": row for letter, section in requirements().items() for number, row in section.items()}
    return {name for name in proofs() if name not in rows or "open" in rows[name]}


def checklist() -> str:
    """A table per section: what is asked for, how firmly, and what proves it."""
    found = proofs()
    lines: list[str] = []
    for letter, section in requirements().items():
        lines += [f"## {section.pop('title')}", "", "| | level | what | status |", "|---|---|---|---|"]
        for number, row in section.items():
            cells = (letter + number, LEVELS[row["level"]], row["text"], status(row, found.get(letter + number, [])))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def status(row: dict[str, Any], tests: list[Proof]) -> str:
    """Not implemented, not covered, or the tests."""
    if "open" in row:
        return f"**not implemented**: {row['open']}"
    proven = "tested: " + "; ".join(proof.link for proof in tests) if tests else "**not covered** by a test"
    return f"{proven}. {row['note']}" if "note" in row else proven


# --- pages -----------------------------------------------------------------------------------------------------


def made() -> dict[str, str]:
    """The text of each block by its name."""
    return {"checklist": checklist()}


def pages() -> dict[Path, str]:
    """Each page with its blocks as they should be."""
    blocks = made()
    found: dict[Path, str] = {}
    for path in (DOCS / "fhir.md", DOCS / "fhir-conformance.md"):
        found[path] = BLOCK.sub(lambda match: f"{match[1]}{blocks[match[2]]}{match[3]}", path.read_text("utf-8"))
    return found


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, "utf-8")

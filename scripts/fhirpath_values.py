"""Write tests/data/fhir/fhirpath.json: what another FHIRPath engine finds in HL7's examples by HL7's expressions.

Usage: uv run --no-project --with fhirpathpy==2.2.4 python scripts/fhirpath_values.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import fhirpathpy  # pyright: ignore[reportMissingImports]
from fhirpathpy.models import models  # pyright: ignore[reportMissingImports]

Json = dict[str, Any]
NEXT = ",\n"

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data" / "fhir"
PARAMETERS: Json = json.loads((ROOT / "capability" / "definitions" / "search-parameters.json").read_text("utf-8"))


def spelled(expression: str) -> str:
    """The expression without what needs a server, and with the operator that takes many values."""
    expression = re.sub(r"\((\S+) as (\w+)\)", r"\1.ofType(\2)", expression)
    expression = re.sub(r"\.as\((\w+)\)", r".ofType(\1)", expression)
    return re.sub(
        r"where\(resolve\(\) is (\w+)\)", r"where(type = '\1' or reference.matches('^(.*/)?\1/[^/]+$'))", expression
    )


def values(resource: Json) -> Json:
    """By parameter the values found; composites that begin at the resource itself tell nothing."""
    found: Json = {}
    for name, row in PARAMETERS[resource["resourceType"]].items():
        if "expression" not in row or row["type"] == "special":
            continue
        # The engine changes what it is given.
        copy = json.loads(json.dumps(resource))
        results = fhirpathpy.evaluate(copy, spelled(row["expression"]), model=models["r4"])
        if row["type"] == "composite":
            results = [one for one in results if "resourceType" not in one]
        if results:
            found[name] = results
    return found


def main() -> None:
    """One line per example and parameter."""
    lines: list[str] = []
    for path in sorted((DATA / "examples").glob("*.json")):
        resource = json.loads(path.read_text("utf-8"))
        if resource["resourceType"] in PARAMETERS:
            rows = values(resource).items()
            told = (f"  {json.dumps(name)}: {json.dumps(one, ensure_ascii=False, default=float)}" for name, one in rows)
            lines.append(f"{json.dumps(path.name)}: {{\n{NEXT.join(told)}\n }}")
    (DATA / "fhirpath.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()

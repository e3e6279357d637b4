"""The printed report: one view of plain texts, rendered by Typst from data that is never markup."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from sqlalchemy.engine import Connection

from app.fhir import resources
from app.fhir.mapping import report as mapping
from app.fhir.mapping.codes import Json
from app.store import resources as rows
from app.workflow.site import Site

TEMPLATE = Path(__file__).parent / "report.typ"


def pdf(view: Json) -> bytes:
    """The report as PDF; the same view gives the same bytes."""
    # Only a worker prints: the others do without a typesetter in memory.
    import typst

    return typst.compile(_template(), sys_inputs={"view": json.dumps(view, ensure_ascii=False)})


@cache
def _template() -> bytes:
    return TEMPLATE.read_bytes()


def sources(connection: Connection, site: Site, report_id: str, version: int) -> mapping.Sources | None:
    """What the signed version of a report is printed from; None when it or its patient cannot be read."""
    stored = rows.version(connection, "DiagnosticReport", report_id, version)
    report = resources.loads(stored.body) if stored else {}
    patient = _read(connection, report.get("subject"))
    if stored is None or patient is None:
        return None
    tops = [found for one in report.get("result", []) if (found := _read(connection, one))]
    members = [found for top in tops for one in top.get("hasMember", []) if (found := _read(connection, one))]
    return mapping.Sources(
        report=report,
        patient=patient,
        order=_read(connection, next(iter(report.get("basedOn", [])), None)),
        study=_read(connection, next(iter(report.get("imagingStudy", [])), None)),
        observations=[*tops, *members],
        signer=_signer(connection, report_id, version, report),
        version=version,
        zone=site.settings.zone,
    )


def _read(connection: Connection, reference: Json | None) -> Json | None:
    kind, _, resource_id = (reference or {}).get("reference", "").partition("/")
    return resources.read(connection, kind, resource_id.split("/")[0]) if kind and resource_id else None


def _signer(connection: Connection, report_id: str, version: int, report: Json) -> str:
    target = f"DiagnosticReport/{report_id}/_history/{version}"
    for provenance in resources.find(connection, "Provenance", [("target", f"DiagnosticReport/{report_id}")]):
        if any(one.get("reference") == target for one in provenance["target"]):
            return _named(connection, provenance["agent"][0]["who"])
    return _named(connection, next(iter(report.get("resultsInterpreter", [])), {}))


def _named(connection: Connection, who: Json) -> str:
    person = _read(connection, who)
    return mapping.shown_name(person.get("name", [])) if person else who.get("display", "")

"""Our draft of a report, and what its print shows (app.fhir.mapping.report)."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
from fhir.resources.R4B.diagnosticreport import DiagnosticReport

from app.fhir import resources, validation
from app.fhir.mapping import report

STUDY = {"id": "s", "subject": {"reference": "Patient/p"}, "started": "2026-03-01T10:15:00+01:00"}
ORDER = {"id": "o", "code": {"text": "CT chest"}, "reasonCode": [{"text": "Cough"}]}
LENGTH = {"id": "l", "status": "final", "code": {"text": "Length"},
          "valueQuantity": {"value": Decimal("26.4587"), "unit": "mm"}}  # fmt: skip


def view(**changes: Any) -> dict[str, Any]:
    signed = {"status": "final", "code": {"text": "CT chest"}, "issued": "2026-03-01T11:00:00.000+00:00"}
    group = {"id": "g", "status": "final", "code": {"text": "Group"}, "hasMember": [{"reference": "Observation/l"}]}
    patient = {"id": "p", "name": [{"family": "Beispiel", "given": ["Ada"]}]}
    values = {"report": signed, "patient": patient, "order": ORDER, "study": STUDY, "observations": [group, LENGTH],
              "signer": "Dr Roe", "version": 2, "zone": ZoneInfo("Europe/Berlin")}  # fmt: skip
    return report.view(report.Sources(**(values | changes)))


@pytest.mark.parametrize("order", [ORDER, None])
def test_a_draft_is_a_valid_preliminary_report_that_knows_itself(order: dict[str, Any] | None) -> None:
    drafted = report.draft(STUDY, order, [{"reference": "Observation/l"}])
    body = resources.dumps(drafted)
    DiagnosticReport.model_validate(orjson.loads(body))
    assert validation.validate(validation.parse(body), "DiagnosticReport") == []
    assert drafted["status"] == "preliminary"
    assert report.is_draft(drafted)


def test_a_print_shows_who_what_when_and_each_measurement() -> None:
    shown = view()
    assert (shown["banner"], shown["signer"], shown["version"]) == ("FINAL", "Dr Roe", "2")
    assert shown["patient"]["name"] == "Ada Beispiel"
    assert (shown["studied"], shown["issued"]) == ("2026-03-01 10:15 CET", "2026-03-01 12:00 CET")
    assert [(row["name"], row["value"]) for row in shown["measurements"]] == [("Length", "26.46 mm")]


def test_a_withdrawn_group_is_not_printed() -> None:
    gone = {"id": "g", "status": "entered-in-error", "code": {}, "hasMember": [{"reference": "Observation/l"}]}
    assert view(observations=[gone, LENGTH])["measurements"] == []


def test_a_print_of_almost_nothing_is_still_one() -> None:
    shown = view(order=None, study=None, observations=[], patient={"id": "p"}, report={"status": "amended"})
    assert (shown["banner"], shown["accession"], shown["patient"]["name"]) == ("AMENDED", "", "")

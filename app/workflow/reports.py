"""Reports: results gather in a draft, a person with the right signs, and the signing ends the order's life.

The state machine is rows 11 to 13 of the order's table; the archive gets a PDF of what was signed, once per version.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydicom.dataset import Dataset
from sqlalchemy.engine import Connection

from app.access import Access
from app.dicom import archive, encapsulated, uids
from app.errors import Conflict, Forbidden, Issue, Unprocessable
from app.fhir import resources
from app.fhir.mapping import report as mapping
from app.fhir.mapping import terms
from app.fhir.mapping.codes import Json
from app.store import outbox, studies, sync, timeline
from app.store import resources as rows
from app.store.outbox import Claimed, Effect
from app.store.timeline import Happening
from app.workflow import orders, printing
from app.workflow.site import Archive
from app.workflow.states import DEAD_REPORTS, FINAL_REPORTS

SIGN = "isocenter/sign"
PROVENANCE_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, terms.BASE + "/Provenance")
PARTICIPANT = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"
SIGNATURE = {"system": "urn:iso-astm:E1762-95:2013", "code": "1.2.840.10065.1.12.1.1", "display": "Author's Signature"}


# --- results gather ------------------------------------------------------------------------------------------


def gather(connection: Connection, study: Json, results: Sequence[str], cause: str) -> None:
    """Append results to the unsigned report of a study's order; a signed one is left as it is and a person asked."""
    order = _order(connection, study)
    known = _reports(connection, study, order)
    own = next((one for one in known if mapping.is_draft(one) and one["status"] in {"registered", "preliminary"}), None)
    if own is not None:
        _append(connection, own, results, cause)
    elif any(one["status"] in FINAL_REPORTS for one in known):
        _ask_about_late(connection, study, known, results)
    else:
        drafted = mapping.draft(study, order, [{"reference": reference} for reference in results])
        key = f"draft:{drafted['id']}"
        resources.put(connection, drafted, cause=cause, natural_key=key)
        timeline.add(connection, Happening("report-preliminary", cause, order["id"] if order else None))


def _append(connection: Connection, report: Json, results: Sequence[str], cause: str) -> None:
    held = report.get("result", [])
    present = {one.get("reference") for one in held}
    more = [{"reference": reference} for reference in results if reference not in present]
    if more:
        resources.edit(connection, "DiagnosticReport", report["id"], {"result": [*held, *more]}, cause=cause)


def _ask_about_late(connection: Connection, study: Json, known: list[Json], results: Sequence[str]) -> None:
    cited = {one.get("reference") for report in known for one in report.get("result", [])}
    if not set(results) <= cited:
        patient_id = study["subject"]["reference"].removeprefix("Patient/")
        key = f"late-evidence|{study['id']}|{min(results)}"
        orders.review(connection, key, "late-evidence", f"ImagingStudy/{study['id']}", patient_id)


def _order(connection: Connection, study: Json) -> Json | None:
    based_on: list[Json] = study.get("basedOn", [])
    reference = based_on[0]["reference"] if based_on else ""
    return resources.read(connection, "ServiceRequest", reference.removeprefix("ServiceRequest/"))


def _reports(connection: Connection, study: Json, order: Json | None) -> list[Json]:
    if order is not None:
        return resources.find(connection, "DiagnosticReport", [("based-on", f"ServiceRequest/{order['id']}")])
    drafted = resources.read(connection, "DiagnosticReport", mapping.draft_id(f"ImagingStudy/{study['id']}"))
    return [drafted] if drafted else []


# --- the guard before and the hook behind every write of a DiagnosticReport ---------------------------------------


def guard(_connection: Connection, caller: Access, report: Json, before: Json | None) -> None:
    """Signing, and changing what was signed, needs the right; a client without a user names who interpreted."""
    was, becomes = (before or {}).get("status", ""), report["status"]
    if becomes not in FINAL_REPORTS and was not in FINAL_REPORTS:
        return
    if SIGN not in caller.rights:
        raise Forbidden(f"a signed report needs the scope {SIGN}")
    if was in FINAL_REPORTS and becomes not in FINAL_REPORTS | DEAD_REPORTS:
        raise Conflict("a signed report can be amended, corrected, appended or withdrawn, not reopened")
    if caller.user_id is None and not report.get("resultsInterpreter"):
        issue = Issue("required", "a client that signs for a person names the interpreter",
                      "DiagnosticReport.resultsInterpreter")  # fmt: skip
        raise Unprocessable(issues=(issue,))


def received(connection: Connection, caller: Access, report: Json, before: Json | None) -> None:
    """Do what a created or changed DiagnosticReport means."""
    cause = f"DiagnosticReport/{report['id']} by {caller.client_id}"
    if before is None and not mapping.is_draft(report):
        report = _adopt(connection, report, cause)
    if report["status"] in FINAL_REPORTS and not _same(report, before):
        _signed(connection, caller, report, cause)


def _same(report: Json, before: Json | None) -> bool:
    # What the workflow itself adds after signing is no new signing.
    added = {"meta", "presentedForm", "issued"}
    if before is None or before["status"] not in FINAL_REPORTS:
        return False
    return {key: report[key] for key in report.keys() - added} == {key: before[key] for key in before.keys() - added}


def _adopt(connection: Connection, report: Json, cause: str) -> Json:
    """A report from outside for the same order takes over our draft's results; the draft ends."""
    for reference in (one.get("reference", "") for one in report.get("basedOn", [])):
        own = resources.read(connection, "DiagnosticReport", mapping.draft_id(reference))
        if own is None or own["id"] == report["id"] or own["status"] != "preliminary":
            continue
        present = report.get("result", [])
        taken = [one for one in own.get("result", []) if one not in present]
        mark = [one for one in own["identifier"] if one.get("system") == terms.ORDER_DRAFT]
        changes = {"result": [*present, *taken], "identifier": [*report.get("identifier", []), *mark]}
        resources.edit(connection, "DiagnosticReport", report["id"], changes, cause=cause)
        resources.edit(connection, "DiagnosticReport", own["id"], {"status": "entered-in-error"}, cause=cause)
        report = resources.read(connection, "DiagnosticReport", report["id"]) or report
    return report


def _signed(connection: Connection, caller: Access, report: Json, cause: str) -> None:
    moment = mapping.sign_time(datetime.now(UTC))
    if "issued" not in report:
        resources.edit(connection, "DiagnosticReport", report["id"], {"issued": moment}, cause=cause)
    stored = rows.current(connection, "DiagnosticReport", report["id"])
    version = stored.version if stored else 1
    for reference in _result_tree(connection, report):
        _finalise(connection, reference, cause)
    _provenance(connection, caller, report, version, moment)
    for order_id in _order_ids(report):
        timeline.add(connection, Happening("report-final", cause, order_id, detail={"report": report["id"]}))
        acquired = _acquired(connection, order_id)
        orders.advance(connection, order_id, acquired, "report-final", cause)
        orders.complete(connection, order_id, cause)
    payload = {"report": report["id"], "version": version}
    outbox.add(connection, Effect("archive-report", f"report:{report['id']}", f"{report['id']}/{version}", payload))


def _order_ids(report: Json) -> list[str]:
    references = [one.get("reference", "") for one in report.get("basedOn", [])]
    return [one.removeprefix("ServiceRequest/") for one in references if one.startswith("ServiceRequest/")]


def _acquired(connection: Connection, order_id: str) -> frozenset[str]:
    found: frozenset[str] = frozenset()
    for study in orders.studies_of(connection, order_id):
        for held in studies.of_imaging_study(connection, study["id"]):
            found |= studies.modalities(connection, held)
    return found - uids.NOT_IMAGES


def _result_tree(connection: Connection, report: Json) -> list[str]:
    tops = [one.get("reference", "") for one in report.get("result", [])]
    members: list[str] = []
    for reference in tops:
        resource = resources.read(connection, "Observation", reference.removeprefix("Observation/"))
        members += [one.get("reference", "") for one in (resource or {}).get("hasMember", [])]
    return [one for one in dict.fromkeys(tops + members) if one.startswith("Observation/")]


def _finalise(connection: Connection, reference: str, cause: str) -> None:
    """Whoever signs the report vouches for the measurements it cites; doubtful ones stay preliminary."""
    resource = resources.read(connection, "Observation", reference.removeprefix("Observation/"))
    if resource is None or resource["status"] != "preliminary":
        return
    tags = resource.get("meta", {}).get("tag", [])
    if not any(one.get("system") == terms.CHECK for one in tags):
        resources.edit(connection, "Observation", resource["id"], {"status": "final"}, cause=cause)


def _provenance(connection: Connection, caller: Access, report: Json, version: int, moment: str) -> None:
    interpreters = [one["reference"] for one in report.get("resultsInterpreter", []) if one.get("reference")]
    who = caller.fhir_user or next(iter(interpreters), None)
    agent: Json = {"type": {"coding": [{"system": PARTICIPANT, "code": "legal"}]}}
    agent["who"] = {"reference": who} if who else {"display": caller.client_id}
    provenance: Json = {
        "resourceType": "Provenance",
        "id": str(uuid.uuid5(PROVENANCE_NAMESPACE, f"{report['id']}/{version}")),
        "target": [{"reference": f"DiagnosticReport/{report['id']}/_history/{version}"}],
        "recorded": moment,
        "activity": {"coding": [SIGNATURE]},
        "agent": [agent],
    }
    resources.put(connection, provenance, cause="signing")


# --- the archive gets what was signed --------------------------------------------------------------------------


def archive_one(at: Archive, effect: Claimed) -> None:
    """Render the signed version and store it beside its images. Safe to repeat: the same version is the same object."""
    report_id, version = effect.payload["report"], int(effect.payload["version"])
    with at.store.read() as connection:
        sources = printing.sources(connection, at.site, report_id, version)
        place = _place(connection, sources.report) if sources else None
    if sources is None or place is None:
        log_kind = "report-not-archived"
        at.store.transact(
            lambda connection: timeline.add(connection, Happening(log_kind, f"report {report_id}: no images"))
        )
        return
    pdf = printing.pdf(mapping.view(sources))
    document = _document(at, place, (report_id, version), pdf, sources)
    encapsulated.deliver(at.orthanc, document, pdf)
    sync_id, order_ids = place[0], _order_ids(sources.report)
    at.store.transact(lambda connection: _archived(connection, (report_id, version), pdf, sync_id, order_ids))


def _place(connection: Connection, report: Json) -> tuple[str, str] | None:
    """(archive id of the study, archive id of one of its images) that the report belongs to."""
    references = [one.get("reference", "") for one in report.get("imagingStudy", [])]
    named = [one.removeprefix("ImagingStudy/") for one in references]
    ordered = [study["id"] for order_id in _order_ids(report) for study in orders.studies_of(connection, order_id)]
    for imaging_study_id in dict.fromkeys([*named, *ordered]):
        for held in studies.of_imaging_study(connection, imaging_study_id):
            image = studies.any_image(connection, held, uids.NOT_IMAGES)
            if image is not None:
                return held, image
    return None


def _document(
    at: Archive, place: tuple[str, str], key: tuple[str, int], pdf: bytes, sources: mapping.Sources
) -> Dataset:
    report_id, version = key
    header = archive.header(at.orthanc, place[1])
    description = encapsulated.Description(
        title=mapping.view(sources)["title"],
        sop_uid=uids.derived("report", report_id, str(version)),
        series_uid=uids.derived("report-series", report_id),
        number=version,
        signed=datetime.fromisoformat(sources.report["issued"]).astimezone(at.site.settings.zone),
    )
    return encapsulated.document(header, description, pdf)


def _archived(connection: Connection, key: tuple[str, int], pdf: bytes, orthanc_id: str, order_ids: list[str]) -> None:
    report_id, version = key
    cause = f"DiagnosticReport/{report_id} version {version}"
    form: dict[str, Any] = {
        "contentType": "application/pdf",
        "data": base64.b64encode(pdf).decode(),
        "size": len(pdf),
        "hash": base64.b64encode(hashlib.sha1(pdf, usedforsecurity=False).digest()).decode(),
        "title": f"Signed report, version {version}",
    }
    report = resources.read(connection, "DiagnosticReport", report_id)
    if report is not None and report["status"] in FINAL_REPORTS:
        others = [one for one in report.get("presentedForm", []) if one.get("contentType") != "application/pdf"]
        resources.edit(connection, "DiagnosticReport", report_id, {"presentedForm": [*others, form]}, cause=cause)
    sync.mark(connection, [orthanc_id], "report archived")
    for order_id in order_ids:
        timeline.add(connection, Happening("report-archived", cause, order_id, detail={"report": report_id}))

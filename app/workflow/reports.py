"""Reports: results gather in a draft, a person with the right signs, and the signing ends the order's life.

The state machine is rows 11 to 13 of the order's table; the archive gets a PDF of what was signed, once per version.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection

from app.access import Access
from app.dicom.kinds import NOT_IMAGES
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

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SIGN = "isocenter/sign"
ADDED = ("presentedForm", "issued")
CITED = frozenset({"ServiceRequest", "ImagingStudy", "Observation"})
"""What signing and archiving add to a report."""
OUR_FORM = "Signed report, version "
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


def guard(connection: Connection, caller: Access, report: Json, before: Json | None) -> None:
    """Signing, and changing what was signed, needs the right; a report never mixes patients."""
    was, becomes = (before or {}).get("status", ""), report["status"]
    if was in DEAD_REPORTS and becomes not in DEAD_REPORTS:
        raise Conflict("a withdrawn report is not brought back; write a new one")
    if becomes not in DEAD_REPORTS:
        _of_one_patient(connection, report)
    if becomes not in FINAL_REPORTS and was not in FINAL_REPORTS:
        return
    if SIGN not in caller.rights:
        raise Forbidden(f"a signed report needs the scope {SIGN}")
    _may_be_signed(caller, report, before if was in FINAL_REPORTS else None)


def _may_be_signed(caller: Access, report: Json, signed: Json | None) -> None:
    if signed is not None and report["status"] not in FINAL_REPORTS | DEAD_REPORTS:
        raise Conflict("a signed report can be amended, corrected, appended or withdrawn, not reopened")
    if signed is not None and _patient(report) != _patient(signed):
        raise Conflict("a signed report keeps its patient: withdraw it and write another")
    if not _patient(report):
        raise _refused("required", "a signed report names its patient", "subject")
    if caller.user_id is None and not report.get("resultsInterpreter"):
        raise _refused("required", "a client that signs for a person names the interpreter", "resultsInterpreter")


def _of_one_patient(connection: Connection, report: Json) -> None:
    """The order, the images and the measurements of a report are its patient's: a signature closes and files them."""
    for name in ("basedOn", "imagingStudy", "result"):
        for reference in (one.get("reference", "") for one in report.get(name, [])):
            kind, _, identity = reference.partition("/")
            cited = resources.read(connection, kind, identity) if kind in CITED else None
            if cited is not None and _patient(cited) != _patient(report):
                raise _refused("business-rule", f"{name} points to a {kind} of another patient", name)


def _patient(resource: Json) -> str:
    return orders.patient_of(resource) or ""


def _refused(code: str, sentence: str, element: str) -> Unprocessable:
    return Unprocessable(issues=(Issue(code, sentence, f"DiagnosticReport.{element}"),))


def received(connection: Connection, caller: Access, report: Json, before: Json | None) -> None:
    """Do what a created or changed DiagnosticReport means."""
    cause = f"DiagnosticReport/{report['id']} by {caller.client_id}"
    for order_id in sorted(_order_ids(report)):
        orders.lock(connection, order_id)
    if not mapping.is_draft(report):
        report = _adopt(connection, report, before, cause)
    if report["status"] not in FINAL_REPORTS:
        return
    if before is None or not _same(report, before):
        _signed(connection, caller, (report, before), cause)
    elif kept := {name: before[name] for name in ADDED if name in before and name not in report}:
        resources.edit(connection, "DiagnosticReport", report["id"], kept, cause=cause)


def _same(report: Json, before: Json) -> bool:
    """Whether a signed report says what it said: what the workflow adds after signing is no new signing."""
    if before["status"] not in FINAL_REPORTS:
        return False
    apart = {"meta", *ADDED}
    return {key: report[key] for key in report.keys() - apart} == {key: before[key] for key in before.keys() - apart}


def _adopt(connection: Connection, report: Json, before: Json | None, cause: str) -> Json:
    """A report from outside for the same order takes over our draft's results; the draft ends."""
    if before is not None and mapping.is_draft(before):
        # A client that leaves our mark out does not give back what its report has taken over.
        marks = [one for one in before["identifier"] if one.get("system") == terms.ORDER_DRAFT]
        changes = {"identifier": [*report.get("identifier", []), *marks]}
        resources.edit(connection, "DiagnosticReport", report["id"], changes, cause=cause)
        return resources.read(connection, "DiagnosticReport", report["id"]) or report
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


def _signed(connection: Connection, caller: Access, change: tuple[Json, Json | None], cause: str) -> None:
    report, before = change
    moment = mapping.sign_time(datetime.now(UTC))
    changes: dict[str, Any] = {"presentedForm": _foreign_forms(report) or None}
    if report.get("issued") == (before or {}).get("issued"):
        changes["issued"] = moment
    resources.edit(connection, "DiagnosticReport", report["id"], changes, cause=cause)
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


def _foreign_forms(report: Json) -> list[Json]:
    """The presented forms that are not our own PDF of some version."""
    return [one for one in report.get("presentedForm", []) if not one.get("title", "").startswith(OUR_FORM)]


def _order_ids(report: Json) -> list[str]:
    references = [one.get("reference", "") for one in report.get("basedOn", [])]
    return [one.removeprefix("ServiceRequest/") for one in references if one.startswith("ServiceRequest/")]


def _acquired(connection: Connection, order_id: str) -> frozenset[str]:
    found: frozenset[str] = frozenset()
    for study in orders.studies_of(connection, order_id):
        for held in studies.of_imaging_study(connection, study["id"]):
            found |= studies.modalities(connection, held)
    return found - NOT_IMAGES


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
    """Render the signed version once, keep it in the report, store it beside its images. Safe to repeat."""
    # Loaded late: reports are written in one process and archived in another (docs/decisions/0078).
    from app.dicom import encapsulated

    key = effect.payload["report"], int(effect.payload["version"])
    with at.store.read() as connection:
        sources = printing.sources(connection, at.site, *key)
        place = _place(connection, sources.report) if sources else None
        pdf = _kept(connection, key)
    if sources is None:
        missing = Happening("report-not-archived", f"{_named(key)}: its patient cannot be read")
        at.store.transact(lambda connection: timeline.add(connection, missing))
        return
    if pdf is None:
        # Kept before it is delivered: after a crash the same bytes are delivered, whatever has changed meanwhile.
        pdf = printing.pdf(mapping.view(sources))
        form = _form(key[1], pdf)
        at.store.transact(lambda connection: _keep(connection, key, form, sources.report["issued"]))
    if place is not None:
        encapsulated.deliver(at.orthanc, _document(at, place, key, pdf, sources), pdf)
    order_ids = _order_ids(sources.report)
    at.store.transact(lambda connection: _archived(connection, key, place, order_ids))


def _named(key: tuple[str, int]) -> str:
    return f"DiagnosticReport/{key[0]} version {key[1]}"


def _place(connection: Connection, report: Json) -> tuple[str, str] | None:
    """(archive id of the study, archive id of one of its images) that the report belongs to."""
    references = [one.get("reference", "") for one in report.get("imagingStudy", [])]
    named = [one.removeprefix("ImagingStudy/") for one in references]
    ordered = [study["id"] for order_id in _order_ids(report) for study in orders.studies_of(connection, order_id)]
    for imaging_study_id in dict.fromkeys([*named, *ordered]):
        for held in studies.of_imaging_study(connection, imaging_study_id):
            image = studies.any_image(connection, held, NOT_IMAGES)
            if image is not None:
                return held, image
    return None


def _document(
    at: Archive, place: tuple[str, str], key: tuple[str, int], pdf: bytes, sources: mapping.Sources
) -> Dataset:
    # Loaded late: see above.
    from app.dicom import archive, encapsulated, uids

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


def _form(version: int, pdf: bytes) -> Json:
    return {
        "contentType": "application/pdf",
        "data": base64.b64encode(pdf).decode(),
        "size": len(pdf),
        "hash": base64.b64encode(hashlib.sha1(pdf, usedforsecurity=False).digest()).decode(),
        "title": f"{OUR_FORM}{version}",
    }


def _kept(connection: Connection, key: tuple[str, int]) -> bytes | None:
    """The PDF of a signed version, once it was rendered: in that version's successors."""
    report_id, version = key
    current = rows.current(connection, "DiagnosticReport", report_id)
    for number in range(version + 1, (current.version if current else 0) + 1):
        stored = rows.version(connection, "DiagnosticReport", report_id, number)
        forms: list[Json] = resources.loads(stored.body).get("presentedForm", []) if stored else []
        for form in forms:
            if form.get("title") == f"{OUR_FORM}{version}":
                return base64.b64decode(form["data"])
    return None


def _keep(connection: Connection, key: tuple[str, int], form: Json, issued: str) -> None:
    # Locked before it is read: a newer signing must not get the older version's print.
    rows.current(connection, "DiagnosticReport", key[0], for_update=True)
    report = resources.read(connection, "DiagnosticReport", key[0])
    if report is not None and report["status"] in FINAL_REPORTS and report.get("issued") == issued:
        forms = [*_foreign_forms(report), form]
        resources.edit(connection, "DiagnosticReport", key[0], {"presentedForm": forms}, cause=_named(key))


def _archived(
    connection: Connection, key: tuple[str, int], place: tuple[str, str] | None, order_ids: Iterable[str]
) -> None:
    cause = _named(key)
    if place is not None:
        sync.mark(connection, [place[0]], "report archived")
    else:
        cause += ": no images to file it with"
    kind = "report-archived" if place is not None else "report-not-archived"
    for order_id in order_ids:
        timeline.add(connection, Happening(kind, cause, order_id, detail={"report": key[0]}))

"""`isocenter modality`: a simulated scanner."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.shared import show
from app.dicom import modality
from app.dicom.modality import Peer
from app.dicom.phantom import Phantom
from app.errors import ConfigurationError
from app.settings import Settings

modality_commands = typer.Typer(no_args_is_help=True, help="A simulated scanner.")


# --- the simulated scanner -------------------------------------------------------------------------------------


@modality_commands.command("worklist")
def modality_worklist(  # noqa: PLR0917
    accession: str = "",
    patient_id: str = "",
    modality_code: Annotated[str, typer.Option("--modality")] = "",
    station: str = "",
    date: str = "",
    worklist: Annotated[str, typer.Option(help="AE@host:port; default: this installation")] = "",
) -> None:
    """Ask the worklist (C-FIND) and print one JSON line for each step."""
    keys_ = _keys(accession, patient_id, modality_code, station, date)
    for item in modality.find_worklist(_worklist_peer(worklist), keys_):
        step = item.ScheduledProcedureStepSequence[0]
        show({
            "accession": str(item.AccessionNumber),
            "patient_id": str(item.PatientID),
            "study_uid": str(item.StudyInstanceUID),
            "procedure": str(item.RequestedProcedureDescription or ""),
            "modality": str(step.Modality),
            "station": str(step.ScheduledStationAETitle),
            "start": f"{step.ScheduledProcedureStepStartDate} {step.ScheduledProcedureStepStartTime}",
            "step": str(step.ScheduledProcedureStepID),
            "status": str(step.ScheduledProcedureStepStatus or ""),
        })  # fmt: skip


@modality_commands.command("acquire")
def modality_acquire(  # noqa: PLR0917
    accession: str = "",
    patient_id: str = "",
    station: str = "",
    slices: Annotated[int, typer.Option(min=1, max=2000)] = 24,
    mpps: bool = True,
    worklist: Annotated[str, typer.Option(help="AE@host:port; default: this installation")] = "",
    archive: Annotated[str, typer.Option(help="AE@host:port of the archive; default: this installation's")] = "",
) -> None:
    """Acquire every step the worklist shows for the order: MPPS, a generated phantom, C-STORE."""
    peer = _worklist_peer(worklist)
    items = modality.find_worklist(peer, _keys(accession, patient_id, "", station, ""))
    if not items:
        raise ConfigurationError("the worklist shows no step for that")
    for item in items:
        scan = modality.Scan(mpps=mpps, phantom=Phantom(slices=slices))
        done = modality.acquire(item, peer, _peer(archive) if archive else _managed_archive(), scan)
        show({"study_uid": done.study_uid, "series_uid": done.series_uid, "instances": len(done.sop_uids)})


def _keys(accession: str, patient_id: str, modality_code: str, station: str, date: str) -> dict[str, str]:
    keys_ = {
        "AccessionNumber": accession,
        "PatientID": patient_id,
        "Modality": modality_code,
        "ScheduledStationAETitle": station,
        "ScheduledProcedureStepStartDate": date.replace("-", "", 2) if date.count("-") == 2 else date,
    }
    return {keyword: value for keyword, value in keys_.items() if value}


def _worklist_peer(text: str) -> Peer:
    settings = Settings()
    return _peer(text) if text else Peer(settings.dicom_host, settings.dicom_port, settings.ae_title)


def _managed_archive() -> Peer:
    return Peer("127.0.0.1", Settings().orthanc_dicom_port, "ORTHANC")


def _peer(text: str) -> Peer:
    ae_title, _, address = text.partition("@")
    host, _, port = address.rpartition(":")
    if not ae_title or not host or not port.isdigit():
        raise ConfigurationError("a DICOM peer is written AE@host:port")
    return Peer(host, int(port), ae_title)

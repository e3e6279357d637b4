"""Sets up the demo's data folder, starts everything, plays the story, and serves until a signal."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from app.demo import story
from app.demo.story import Places, Step
from app.dicom.modality import Peer
from app.main import demo_ehr, processes
from app.main.signals import stopped_by_signal
from app.main.supervisor import Supervisor
from app.settings import Settings
from app.store import schema
from app.store.database import Store

HELP = """
One order has lived its whole life. Now it is your turn; these pages are yours until Ctrl-C:

  Demo EHR        {base}/ehr
  FHIR            {base}/fhir/metadata
  DICOMweb        {base}/dicom-web/studies           (needs an access token)
  Worklist        {ae_title} on {host}:{dicom_port}   (findscu -W, or: isocenter modality worklist)

  1. Open the demo EHR, choose a patient, place an order.
  2. In another terminal: uv run isocenter modality acquire --accession <the order's accession number>
  3. Back in the EHR: "Open images". In OHIF draw a Length, answer "Yes" to tracking, "Create SR", "Save".
  4. In the EHR the measurement stands in the draft report: sign it. The PDF is now in OHIF's series list.

  Users at the authorization server's login page: radiologist, technologist, operator, admin; password "{password}".
"""


def environment(data_dir: Path) -> None:
    """What the demo fixes for itself and its child processes, unless the caller has set it."""
    host, port = os.environ.get("ISOCENTER_HOST", "127.0.0.1"), os.environ.get("ISOCENTER_PORT", "8080")
    shown = "localhost" if host == "127.0.0.1" else host
    os.environ["ISOCENTER_DEMO"] = "true"
    os.environ["ISOCENTER_DATA_DIR"] = str(data_dir.resolve())
    os.environ.setdefault("ISOCENTER_PUBLIC_URL", f"http://{shown}:{port}")


def demo(data_dir: Path, *, once: bool) -> int:
    """The whole demo; the exit status."""
    environment(data_dir)
    settings = Settings()
    schema.migrate_url(settings.database)
    supervisor = Supervisor()
    stop = stopped_by_signal()
    try:
        _say("Starting the archive and the server …")
        logs = settings.data_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        processes.start_all(settings, supervisor, logs=logs)
        played = story.play(places(settings), _tell)
        if once:
            supervisor.end()
            sys.stdout.write(played.summary() + "\n")
            return 0 if played.ok else 1
        if not played.ok:
            _say(f"The story stopped; the server keeps serving. Its logs are in {logs}.")
        _say(_help(settings))
        supervisor.run(stop)
    finally:
        supervisor.end()
    return 0


def places(settings: Settings) -> Places:
    """Where this installation listens, with a token of the demo EHR."""
    store = Store(settings.database)
    token = demo_ehr.Tokens(store)()
    store.close()
    return Places(
        base=f"http://{settings.host}:{settings.port}",
        token=token,
        worklist=Peer(settings.dicom_host, settings.dicom_port, settings.ae_title),
        archive=archive(settings),
        patient_id=demo_ehr.PATIENTS[0][0].lower(),
    )


def archive(settings: Settings) -> Peer:
    """The managed Orthanc's C-STORE address."""
    return Peer("127.0.0.1", settings.orthanc_dicom_port, "ORTHANC")


def _tell(step: Step) -> None:
    mark = "ok    " if step.ok else "FAILED"
    _say(f"  {mark} {step.step:<20} {step.ms:>6} ms  {step.error}".rstrip())


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _help(settings: Settings) -> str:
    return HELP.format(
        base=settings.public_url,
        ae_title=settings.ae_title,
        host=settings.dicom_host,
        dicom_port=settings.dicom_port,
        password=demo_ehr.PASSWORD,
    )

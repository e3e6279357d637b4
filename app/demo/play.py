"""Plays the story on this installation, and says what to do next."""

from __future__ import annotations

from collections.abc import Callable

from app.demo.story import Places, Played, Step, play
from app.dicom.modality import Peer
from app.main import demo_ehr
from app.settings import Settings
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


def story(settings: Settings, say: Callable[[str], None]) -> Played:
    """Play the story, one line for each step."""
    return play(places(settings), lambda step: say(_line(step)))


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


def _line(step: Step) -> str:
    mark = "ok    " if step.ok else "FAILED"
    return f"  {mark} {step.step:<20} {step.ms:>6} ms  {step.error}".rstrip()


def what_next(settings: Settings) -> str:
    """Addresses, and what to click."""
    return HELP.format(
        base=settings.public_url,
        ae_title=settings.ae_title,
        host=settings.dicom_host,
        dicom_port=settings.dicom_port,
        password=demo_ehr.PASSWORD,
    )

"""The archive asked by whoever watches: a short question with little patience."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.engine import Connection

from app.errors import IsocenterError
from app.settings import Settings
from app.store.database import Store
from app.workflow import standing
from app.workflow.standing import Json, Seen, Standing

if TYPE_CHECKING:
    from app.dicom.orthanc import Orthanc

PATIENCE = 5.0


def seen(settings: Settings) -> Seen:
    """The archive's last change, or why it does not answer."""
    try:
        with _archive(settings) as orthanc:
            return Seen(orthanc.last_change())
    except IsocenterError as error:
        return Seen(error=str(error))


def of(store: Store, settings: Settings) -> Standing:
    """Where keeping in step stands, the archive asked now."""
    answer = seen(settings)
    with store.read() as connection:
        return standing.of(connection, settings, answer)


def told(connection: Connection, settings: Settings) -> Json:
    """The same for FHIR, on a connection that is open already."""
    return standing.of(connection, settings, seen(settings)).told()


def _archive(settings: Settings) -> Orthanc:
    # Loaded late: most of what a process does needs no HTTP client (docs/decisions/0078).
    from app.dicom.orthanc import Orthanc
    from app.main import processes

    url, username, password = processes.reach(settings)
    return Orthanc(url, username, password, connections=1, patience=PATIENCE)

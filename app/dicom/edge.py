"""The DIMSE server: C-ECHO, worklist C-FIND and, where handed in, MPPS (PS3.7 9.1, 10.1; PS3.4 Annexes A, F, K)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

import pydicom.config
import structlog
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom import _config as pynetdicom_config
from pynetdicom.dimse_primitives import N_CREATE, N_SET

from app import errors
from app.dicom import mpps, uids, worklist

# Both libraries would otherwise write identifiers, that is patients, into logs and warnings.
pynetdicom_config.LOG_REQUEST_IDENTIFIERS = False
pynetdicom_config.LOG_RESPONSE_IDENTIFIERS = False
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

MAXIMUM_ASSOCIATIONS: Final = 50
# A console that still asks for more than this has left the patient, date and station empty.
MAXIMUM_MATCHES: Final = 1000
IDLE_SECONDS: Final = 60
ANSWER_SECONDS: Final = 30

PENDING: Final = 0xFF00
PENDING_WITH_UNSUPPORTED_KEYS: Final = 0xFF01
CANCELLED: Final = 0xFE00
OUT_OF_RESOURCES: Final = 0xA700
IDENTIFIER_DOES_NOT_MATCH: Final = 0xA900
UNABLE_TO_PROCESS: Final = 0xC000

TRANSFER_SYNTAXES: Final = [uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.IMPLICIT_VR_LITTLE_ENDIAN]

log = structlog.get_logger(__name__)

Response: TypeAlias = tuple[int | Dataset, Dataset | None]


@dataclass(frozen=True, slots=True)
class Edge:
    """A listening server; `port` is the real one, also when 0 was asked for."""

    host: str
    port: int
    ae_title: str
    entity: AE

    def stop(self) -> None:
        """Abort what is open and give the port back."""
        self.entity.shutdown()


def serve(
    host: str,
    port: int,
    ae_title: str,
    items: worklist.Worklist,
    steps: mpps.MppsHandler | None = None,
) -> Edge:
    """Listen in threads of its own; `items` and `steps` are called from them, several at once."""
    entity = AE(ae_title=ae_title)
    entity.implementation_class_uid = uids.IMPLEMENTATION_CLASS
    entity.implementation_version_name = uids.IMPLEMENTATION_VERSION
    entity.require_called_aet = True
    entity.maximum_associations = MAXIMUM_ASSOCIATIONS
    entity.acse_timeout = entity.dimse_timeout = ANSWER_SECONDS
    entity.network_timeout = IDLE_SECONDS
    entity.add_supported_context(uids.VERIFICATION, TRANSFER_SYNTAXES)
    entity.add_supported_context(uids.MODALITY_WORKLIST_FIND, TRANSFER_SYNTAXES)
    handlers: list[Any] = [
        (evt.EVT_C_ECHO, _echo),
        (evt.EVT_C_FIND, _find, [items]),
        (evt.EVT_ACCEPTED, _accepted),
        (evt.EVT_REJECTED, _rejected),
    ]
    if steps:
        entity.add_supported_context(uids.MODALITY_PERFORMED_PROCEDURE_STEP, TRANSFER_SYNTAXES)
        handlers += [
            (evt.EVT_N_CREATE, _create, [steps]),
            (evt.EVT_N_SET, _set, [steps]),
        ]
    try:
        server = entity.start_server((host, port), block=False, evt_handlers=handlers)
    except OSError as error:
        raise errors.ConfigurationError(
            f"cannot listen for DICOM on {host}:{port} ({error.strerror}); "
            "set ISOCENTER_DICOM_HOST and ISOCENTER_DICOM_PORT to a free address"
        ) from error
    real_port = int(server.server_address[1]) if server else port
    log.info("dimse listening", host=host, port=real_port, ae_title=ae_title)
    return Edge(host, real_port, ae_title, entity)


def _calling(event: evt.Event) -> str:
    return str(event.assoc.requestor.ae_title).strip()


def _accepted(event: evt.Event) -> None:
    log.info("association accepted", calling=_calling(event), address=event.assoc.requestor.address)


def _rejected(event: evt.Event) -> None:
    log.warning("association rejected", calling=_calling(event), address=event.assoc.requestor.address)


def _echo(event: evt.Event) -> int:
    log.info("echo", calling=_calling(event))
    return 0x0000


# --- worklist -------------------------------------------------------------------------------------------------------


def _find(event: evt.Event, items: worklist.Worklist) -> Iterator[Response]:
    started, sent, status = time.monotonic(), 0, 0x0000
    for response in _responses(event, items):
        status = response[0] if isinstance(response[0], int) else int(response[0].Status)
        sent += status in {PENDING, PENDING_WITH_UNSUPPORTED_KEYS}
        yield response
    log.info(
        "worklist answered",
        calling=_calling(event),
        answers=sent,
        status=f"{status:04X}",
        milliseconds=round((time.monotonic() - started) * 1000),
    )


def _responses(event: evt.Event, items: worklist.Worklist) -> Iterator[Response]:
    try:
        query = event.identifier
        worklist.check(query)
        pending = PENDING_WITH_UNSUPPORTED_KEYS if worklist.unsupported(query) else PENDING
        candidates = items(worklist.worklist_keys(query, _calling(event)))
        for count, answer in enumerate(worklist.answers(query, candidates)):
            if event.is_cancelled:
                yield CANCELLED, None
                return
            if count == MAXIMUM_MATCHES:
                yield _failure(OUT_OF_RESOURCES, f"more than {MAXIMUM_MATCHES} matches; narrow the query"), None
                return
            yield pending, answer
    except errors.BadRequest as error:
        yield _failure(IDENTIFIER_DOES_NOT_MATCH, error.issues[0].diagnostics), None
    except errors.Unavailable:
        yield _failure(OUT_OF_RESOURCES, "the worklist cannot be read now"), None
    except Exception as error:  # noqa: BLE001  the door of DIMSE: whatever fails becomes a status, never an abort
        log.warning("worklist failed", calling=_calling(event), error=type(error).__name__, where=errors.place(error))
        yield _failure(UNABLE_TO_PROCESS, "unable to process"), None


def _failure(status: int, comment: str) -> Dataset:
    response = Dataset()
    response.Status = status
    response.ErrorComment = comment[:64]
    return response


# --- performed procedure steps --------------------------------------------------------------------------------------


def _create(event: evt.Event, steps: mpps.MppsHandler) -> Response:
    named = cast(N_CREATE, event.request).AffectedSOPInstanceUID
    uid = str(named or uids.new())
    status = _step(event, uid, lambda: mpps.create(steps, uid, event.attribute_list))
    given = Dataset()
    if not named:
        # The scanner left the name to us (PS3.7 10.1.5.1.4); pynetdicom moves it into the response.
        given.AffectedSOPInstanceUID = uid
    return status, given


def _set(event: evt.Event, steps: mpps.MppsHandler) -> Response:
    uid = str(cast(N_SET, event.request).RequestedSOPInstanceUID)
    return _step(event, uid, lambda: mpps.update(steps, uid, event.modification_list)), None


def _step(event: evt.Event, uid: str, take: Callable[[], None]) -> Dataset:
    status = Dataset()
    status.Status = 0x0000
    try:
        take()
    except mpps.Refused as refused:
        status = _failure(refused.dimse_status, refused.comment)
        if refused.error_id is not None:
            status.ErrorID = refused.error_id
        if refused.attributes:
            status.AttributeIdentifierList = list(refused.attributes)
    except Exception as error:  # noqa: BLE001  the door of DIMSE: whatever fails becomes a status, never an abort
        log.warning(
            "performed step failed",
            calling=_calling(event),
            mpps_uid=uid,
            error=type(error).__name__,
            where=errors.place(error),
        )
        status = _failure(mpps.PROCESSING_FAILURE, "unable to process")
    log.info("performed step", calling=_calling(event), mpps_uid=uid, status=f"{status.Status:04X}")
    return status

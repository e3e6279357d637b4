"""The archive's REST interface: what Orthanc holds, read and changed by one small client (Orthanc Book, REST API)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import orjson

from app.dicom.wire import Body, Wire
from app.errors import ArchiveFailed, ArchiveUnavailable, BadRequest, IsocenterError, NotFound

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset

Json = dict[str, Any]
Level = Literal["Patient", "Study", "Series", "Instance"]

CONNECTIONS = 6
"""Orthanc has ten HTTP threads, and each idle connection keeps one busy."""
PAGE = 1000
PAGES = frozenset({b"", b"<", b"{"})
"""How nothing, HTML and JSON begin: an image that happens to begin so is fetched when it is asked for."""


@dataclass(frozen=True, slots=True)
class Stored:
    """How the archive took an object in: `Success`, `AlreadyStored` or `FilteredOut`, and where it now is."""

    status: str
    orthanc_id: str
    study_orthanc_id: str


@dataclass(frozen=True, slots=True)
class Found:
    """One resource of the archive that carries a UID."""

    level: Level
    orthanc_id: str


class Orthanc:
    """A connection pool to one archive; close it after use."""

    def __init__(
        self, url: str, username: str = "", password: str = "", *, connections: int = CONNECTIONS, patience: float = 60
    ) -> None:
        """`url` is Orthanc's REST root; without a username no credential is sent. `patience`: seconds for an answer."""
        self._url, self._credential = url, (username, password)
        self._wire = Wire(url, username, password, connections=connections, patience=patience)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of every connection."""
        self._wire.close()

    def system(self) -> Json:
        """Version, name and database of the archive."""
        return self._get("/system")

    def statistics(self) -> Json:
        """Totals, for the sweep: CountStudies, CountInstances …"""
        return self._get("/statistics")

    def changes(self, since: int, limit: int = PAGE) -> Json:
        """What was logged after sequence number `since`: Changes, Done, Last. A hint: deletions erase its rows."""
        return self._get("/changes", since=since, limit=limit)

    def last_change(self) -> int:
        """The archive's sequence number; smaller than one seen before, the database is another one."""
        # Only a call beyond the end tells the true number; `?last` tells that of the last row not yet erased.
        return int(self._get("/changes", since=2**31 - 1, limit=1)["Last"])

    def study_ids(self) -> Iterator[str]:
        """The Orthanc id of every study, page by page."""
        since = 0
        while page := self._get("/studies", since=since, limit=PAGE):
            yield from page
            if len(page) < PAGE:
                return
            since += len(page)

    def study(self, orthanc_id: str) -> Json:
        """One study: MainDicomTags, PatientMainDicomTags, ParentPatient, Series, IsStable, LastUpdate."""
        return self._get(f"/studies/{orthanc_id}")

    def series_of(self, study_orthanc_id: str) -> list[Json]:
        """The series of a study, each with MainDicomTags and the ids of its Instances."""
        return self._get(f"/studies/{study_orthanc_id}/series")

    def bulk_content(self, level: Level | None, orthanc_ids: Sequence[str], *, metadata: bool = True) -> list[Json]:
        """Many resources in one call, or without a level each as what it is.

        Instances bring SopClassUid and TransferSyntax in Metadata.
        """
        body = {"Resources": list(orthanc_ids), "Metadata": metadata} | ({"Level": level} if level else {})
        return self._json("POST", "/tools/bulk-content", body) if orthanc_ids else []

    def instance(self, orthanc_id: str) -> Json:
        """One instance: MainDicomTags, ParentSeries, FileUuid."""
        return self._get(f"/instances/{orthanc_id}")

    def tags(self, instance_id: str) -> Json:
        """Every tag of an instance but pixels, `{"0010,0010": {"Name", "Type", "Value"}}`."""
        return self._get(f"/instances/{instance_id}/tags")

    def tags_of_study(self, study_id: str) -> Json:
        """The same of every instance of a study, by instance id."""
        return self._get(f"/studies/{study_id}/instances-tags")

    def series_tags(self, series_id: str) -> Json:
        """The tags of a whole series by instance id, as `{keyword: text}`."""
        return self._json("GET", f"/series/{series_id}/instances-tags?simplify")

    def metadata(self, path: str) -> list[Json]:
        """DICOM JSON of a study, series or instance by UIDs; empty where the plugin is absent or the UID ambiguous."""
        try:
            return self._json("GET", f"/dicom-web{path}/metadata")
        except (NotFound, BadRequest):
            return []

    def transcoded(self, instance_id: str, transfer_syntax: str) -> bytes:
        """The instance as a file in another transfer syntax; nothing else changes, and nothing is stored."""
        kept = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]
        body = {"Transcode": transfer_syntax, "Keep": kept, "Force": True}
        return self._send("POST", f"/instances/{instance_id}/modify", body=orjson.dumps(body))

    def frame(self, instance_id: str, number: int) -> bytes:
        """One frame as it is stored, counted from 0. One that may be a proxy's page instead is refused."""
        content = self._send("GET", f"/instances/{instance_id}/frames/{number}/raw")
        if content[:1] in PAGES:
            raise ArchiveUnavailable("the archive answered something that may be no image")
        return content

    def file(self, instance_id: str) -> bytes:
        """The DICOM file as the archive holds it."""
        return self._send("GET", f"/instances/{instance_id}/file")

    def dataset(self, instance_id: str, *, stop_before_pixels: bool = True) -> FileDataset:
        """The instance, parsed."""
        # Loaded late: most of what asks the archive reads JSON (docs/decisions/0078).
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError

        content = self.file(instance_id)
        try:
            return dcmread(BytesIO(content), stop_before_pixels=stop_before_pixels)
        except InvalidDicomError as error:
            raise IsocenterError("the archive holds a file that is not DICOM") from error

    def lookup(self, uid: str) -> list[Found]:
        """Every resource that carries this UID; two studies may, when two patients do."""
        answer: list[Json] = _loads(self._send("POST", "/tools/lookup", body=uid.encode()))
        return [Found(found["Type"], found["ID"]) for found in answer]

    def instances_with_uid(self, sop_uid: str) -> list[str]:
        """The archive's ids of the instances that carry this SOP Instance UID."""
        return [found.orthanc_id for found in self.lookup(sop_uid) if found.level == "Instance"]

    def stow(self, document: Dataset) -> None:
        """Store one object by STOW-RS, as into any archive; what is there already stays as it is."""
        # Loaded late: only the process that delivers documents stores them.
        from dicomweb_client import DICOMwebClient, session_utils

        session = session_utils.create_session_from_user_pass(*self._credential)
        session.headers["Accept-Encoding"] = "identity"
        session.trust_env = False
        web = DICOMwebClient(f"{self._url}/dicom-web", session=session)
        try:
            web.store_instances([document])
        except OSError as error:
            # requests' errors are OSErrors: an archive that refuses says why only to us.
            raise ArchiveUnavailable(f"the archive did not store the object ({type(error).__name__})") from error
        finally:
            session.close()

    def parent(self, level: Literal["instances", "series"], orthanc_id: str, above: str) -> Json:
        """What an instance or a series belongs to: `above` is series, study or patient."""
        return self._get(f"/{level}/{orthanc_id}/{above}")

    def md5(self, instance_id: str) -> str:
        """The MD5 sum of the instance's file, lower case; empty where the archive does not keep sums."""
        try:
            told = self._send("GET", f"/instances/{instance_id}/attachments/dicom/md5")
        except NotFound:
            return ""
        return told.decode("ascii", "replace").strip()

    def store(self, content: Body) -> Stored:
        """Put one DICOM file into the archive. Safe to repeat: what is there stays as it is."""
        answer: Json = _loads(self._send("POST", "/instances", body=content, kind="application/dicom"))
        return Stored(answer["Status"], answer.get("ID", ""), answer.get("ParentStudy", ""))

    def delete_study(self, orthanc_id: str) -> None:
        """Remove a study. One that is gone already is no error."""
        self._delete(f"/studies/{orthanc_id}")

    def delete_instance(self, orthanc_id: str) -> None:
        """Remove an instance. One that is gone already is no error."""
        self._delete(f"/instances/{orthanc_id}")

    def _delete(self, path: str) -> None:
        try:
            self._send("DELETE", path)
        except NotFound:
            return

    def _get(self, path: str, **query: int) -> Any:
        return _loads(self._send("GET", path, query=query))

    def _json(self, method: str, path: str, value: object = None) -> Any:
        return _loads(self._send(method, path, body=b"" if value is None else orjson.dumps(value)))

    def _send(
        self, method: str, path: str, *, query: Mapping[str, int] | None = None, body: Body = b"", kind: str = ""
    ) -> bytes:
        status, answer = self._wire.send(method, path, query=query, body=body, kind=kind)
        refuse(status)
        return answer


def _loads(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except ValueError:
        return _patiently(body)


def _patiently(body: bytes) -> Any:
    try:
        # Half of a surrogate pair, which an invalid name may hold, is refused by the quick reader.
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ArchiveUnavailable("the archive answered something that is not JSON") from error


def refuse(status: int) -> None:
    """Raise what the archive's status means to our caller."""
    if status < 400:
        return
    if status == 404:
        raise NotFound("the archive holds no such object")
    if status in {401, 403}:
        raise ArchiveUnavailable("the archive refuses our credential")
    if status < 500:
        raise BadRequest(f"the archive refuses the request ({status})")
    raise ArchiveFailed(f"the archive failed ({status})")

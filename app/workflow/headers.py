"""Headers that were read before: a file in the archive never changes under its name (Orthanc's FileUuid)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from app.dicom.archive import Header, HeldInstance, HeldStudy
    from app.dicom.orthanc import Orthanc

KEPT = 512
LARGEST = 2000
"""A header with more elements, such as one of many frames, is read again: few would fill the memory."""


class Headers:
    """The headers one process has read last; safe to use from several threads."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Dataset] = OrderedDict()

    def read(self, orthanc: Orthanc, held: HeldInstance) -> Dataset:
        """The header of an instance; nobody may change it."""
        known = self._of(held)
        if known is not None:
            return known
        # Loaded late: the site that knows of headers is in processes that read none (docs/decisions/0078).
        from app.dicom import archive

        header = archive.header(orthanc, held.orthanc_id)
        self._keep(held, header)
        return header

    def read_all(self, orthanc: Orthanc, study: HeldStudy) -> dict[str, Dataset]:
        """The headers of every instance of a study, by the archive's ids, unless some of them are known already."""
        from app.dicom import archive

        instances = [one for series in study.series for one in series.instances]
        if any(self._of(one) is not None for one in instances):
            return {}
        found = archive.headers(orthanc, study.orthanc_id)
        for one in instances:
            if one.orthanc_id in found:
                self._keep(one, found[one.orthanc_id])
        return {**found}

    def _of(self, held: HeldInstance) -> Dataset | None:
        with self._lock:
            known = self._known.get(held.file)
            if known is not None:
                self._known.move_to_end(held.file)
            return known

    def _keep(self, held: HeldInstance, header: Header) -> None:
        if not held.file or header.size > LARGEST:
            return
        with self._lock:
            self._known[held.file] = header
            if len(self._known) > KEPT:
                self._known.popitem(last=False)

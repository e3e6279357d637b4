"""Headers that were read before: a file in the archive never changes under its name (Orthanc's FileUuid)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from app.dicom.archive import HeldInstance
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
        with self._lock:
            known = self._known.get(held.file)
            if known is not None:
                self._known.move_to_end(held.file)
                return known
        # Loaded late: the site that knows of headers is in processes that read none (docs/decisions/0078).
        from app.dicom import archive

        header = archive.header(orthanc, held.orthanc_id)
        if held.file and header.size <= LARGEST:
            with self._lock:
                self._known[held.file] = header
                if len(self._known) > KEPT:
                    self._known.popitem(last=False)
        return header

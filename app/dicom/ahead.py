"""Frames that a reader of a series will want next, fetched before they are asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Final

from app.dicom.flights import Flights
from app.dicom.holdings import Holding, Instance, Series
from app.dicom.orthanc import Orthanc
from app.dicom.rendering import NO_IMAGE, WITHOUT_FRAMES

FRAMES: Final = 12
"""So many frames are on their way before a reader who goes through a series in order."""
OPENING: Final = 8
"""So many when the series is opened."""
LAUNCHED: Final = 16
"""So many when a viewer was launched for the study."""
SHOWN: Final = 8
"""Of so many series a picture."""
SERIES: Final = 64


@dataclass(slots=True)
class Track:
    """Where the reader of one series was last."""

    series: Series
    places: list[tuple[Instance, int]]
    starts: dict[str, int]
    at: int = -1


class Ahead:
    """The series being read. Safe to share between threads; knows nothing but what was granted to who asked."""

    def __init__(self, orthanc: Orthanc, flights: Flights) -> None:
        """Fetches through this client only."""
        self._orthanc, self._flights = orthanc, flights
        self._lock = threading.Lock()
        self._tracks: OrderedDict[str, Track] = OrderedDict()

    def opened(self, holding: Holding, series_uid: str, frames: int = OPENING) -> None:
        """Somebody looks at what the series is: its first frames."""
        series = holding.series.get(series_uid)
        if series is not None and series.tags.get("Modality") not in NO_IMAGE:
            self._fetch(self._track(series), 0, frames)

    def launched(self, holding: Holding) -> None:
        """A viewer is about to open: the first series, and of each the picture that stands for it."""
        shown = [one for one in holding.series.values() if one.tags.get("Modality") not in NO_IMAGE]
        for series in shown[:SHOWN]:
            track = self._track(series)
            self._fetch(track, len(track.places) // 2, 1)
        for series in shown[:1]:
            self.opened(holding, series.uid, LAUNCHED)

    def asked(self, series: Series, instance: Instance, number: int) -> None:
        """A frame was asked for, counted from 0: when the one before it was the last, or none was, those after it."""
        track = self._track(series)
        at = track.starts.get(instance.orthanc_id, 0) + number
        follows, track.at = at - track.at in {0, 1}, at
        if follows:
            self._fetch(track, at + 1, FRAMES)

    def _track(self, series: Series) -> Track:
        with self._lock:
            track = self._tracks.get(series.orthanc_id)
            if track is None or track.series is not series:
                track = self._tracks[series.orthanc_id] = _tracked(series, track.at if track else -1)
                while len(self._tracks) > SERIES:
                    self._tracks.popitem(last=False)
            self._tracks.move_to_end(series.orthanc_id)
        return track

    def _fetch(self, track: Track, start: int, count: int) -> None:
        for instance, number in track.places[start : start + count]:
            name = f"{instance.version} frames/{number}/raw"
            if not self._flights.ahead(name, partial(self._orthanc.frame, instance.orthanc_id, number)):
                return


def _tracked(series: Series, at: int) -> Track:
    shown = [one for one in series.instances.values() if not one.sop_class.startswith(WITHOUT_FRAMES)]
    places: list[tuple[Instance, int]] = []
    starts: dict[str, int] = {}
    for instance in shown:
        starts[instance.orthanc_id] = len(places)
        places.extend((instance, number) for number in range(instance.frames))
    return Track(series, places, starts, at)

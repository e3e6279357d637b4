"""The one site a process serves: its address in references, its zone for dates that name none (docs/decisions/0025)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, tzinfo


@dataclass(frozen=True, slots=True)
class Site:
    """`base` is our own address as it may stand before a reference."""

    base: str = ""
    zone: tzinfo = UTC


_HERE = [Site()]


def settle(base: str, zone: tzinfo) -> None:
    """Said once when a process starts, before anything is indexed or searched."""
    _HERE[0] = Site(base, zone)


def here() -> Site:
    """The site; UTC and no address until it is told."""
    return _HERE[0]

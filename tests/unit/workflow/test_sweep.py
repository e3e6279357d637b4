"""When a sweep is full, and when it holds back (app.workflow.sweep); the rest is shown against a real archive."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from app.settings import Settings
from app.store.truth import Believed, Counted
from app.workflow import sweep

COUNTED = Counted(1, 1, "")


def believed(present: int, *, recent: int = 0) -> Believed:
    here = {str(number): COUNTED for number in range(present)}
    return Believed(here, frozenset(), frozenset(), recent, frozenset())


@pytest.mark.parametrize(
    ("known", "missing", "recent", "held"),
    [
        (20, 4, 0, ""),
        (20, 5, 0, sweep.MASS),
        (19, 18, 0, ""),
        (19, 19, 0, sweep.EMPTIED),
        (2, 2, 0, sweep.EMPTIED),
        (2, 1, 0, ""),
        (1, 1, 0, ""),
        (1, 1, 3, ""),
        (17, 3, 3, sweep.MASS),
        (1000, 200, 0, ""),
        (1000, 201, 0, sweep.MASS),
    ],
)
def test_a_mass_is_a_fifth_of_twenty_and_none_left_of_two(known: int, missing: int, recent: int, held: str) -> None:
    gone = frozenset(str(number) for number in range(missing))
    assert sweep._held_back("", believed(known, recent=recent), gone) == held


def test_a_hold_ends_only_when_nothing_is_missing() -> None:
    assert sweep._held_back(sweep.ANOTHER_DATABASE, believed(1000), frozenset("1")) == sweep.ANOTHER_DATABASE
    assert sweep._held_back(sweep.ANOTHER_DATABASE, believed(1000), frozenset()) == ""


@pytest.mark.parametrize("zone", ["UTC", "Europe/Vienna", "Pacific/Auckland"])
def test_the_night_begins_at_the_sites_hour_today_or_yesterday(zone: str) -> None:
    for hour in range(24):
        settings = Settings(timezone=zone, full_sweep_hour=hour)
        begun = datetime.fromtimestamp(sweep._night(settings) / 1000, settings.zone)
        now = datetime.now(settings.zone)
        assert (begun.hour, begun.minute) == (hour, 0)
        assert now - timedelta(days=1, hours=1) < begun <= now

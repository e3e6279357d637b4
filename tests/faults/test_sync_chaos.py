"""Archive, network and workers fail at random while studies come, change and go; in the end FHIR says what is there.

Each round is one seed. ISOCENTER_CHAOS_ROUNDS says how many, ISOCENTER_CHAOS_SEED the first, ISOCENTER_CHAOS_STEPS
how long one is; `make bench ARGS=chaos` plays hundreds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import chaos
from tests.faults.nursery import Nursery, nursery

pytestmark = [pytest.mark.orthanc, pytest.mark.slow]

FIRST = int(os.environ.get("ISOCENTER_CHAOS_SEED", "1"))
SEEDS = range(FIRST, FIRST + int(os.environ.get("ISOCENTER_CHAOS_ROUNDS", "5")))


@pytest.fixture(scope="module")
def loaded() -> Iterator[Nursery]:
    with nursery() as made:
        yield made


@pytest.mark.case(2, 3, 4, 5, 43)
@pytest.mark.parametrize("seed", SEEDS)
def test_after_chaos_fhir_says_what_the_archive_holds(
    seed: int, database_url: str, loaded: Nursery, tmp_path: Path
) -> None:
    played = chaos.play(seed, database_url, tmp_path, loaded)
    assert not played.failed, played.told()

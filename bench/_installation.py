"""A whole installation to measure: migrated, served, with an Orthanc of its own, gone afterwards."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.story.installation import Installation, installed


@contextmanager
def started() -> Iterator[Installation]:
    """It serves until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="isocenter-bench-") as folder, installed(Path(folder)) as made:
        made.start()
        yield made


def count(name: str, default: int) -> int:
    """How often, from the environment."""
    return int(os.environ.get(f"BENCH_{name}", default))


def told(what: str, milliseconds: Sequence[float]) -> None:
    """One line: how many, the middle and the slow end."""
    ordered = sorted(milliseconds)
    middle, slow = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    print(f"{what:<48} n={len(ordered):<6} p50 {middle:8.1f} ms   p99 {slow:8.1f} ms", flush=True)

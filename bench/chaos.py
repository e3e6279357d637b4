"""Hundreds of rounds of chaos (tests.faults.chaos) on each engine: seeds, counts, what was lost and what doubled.

Unlike the other measurements this one can fail: a round that the oracle finds wrong prints its seed and its script.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

# Nothing from beside this file: the bench of FHIR there would hide the library `fhir.resources`.
sys.path.remove(str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from app.store import schema
from app.store.database import Store
from tests.conftest import cluster
from tests.faults import chaos
from tests.faults.chaos import Round
from tests.faults.nursery import Nursery, nursery

ROUNDS, FIRST = int(os.environ.get("BENCH_ROUNDS", "500")), int(os.environ.get("BENCH_SEED", "1"))
ENGINES = os.environ.get("BENCH_ENGINES", "sqlite,postgres").split(",")
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
START, END = "<!-- bench/chaos.py -->", "<!-- end -->"


def main() -> None:
    began, played = time.monotonic(), dict[str, list[Round]]()
    with tempfile.TemporaryDirectory(prefix="isocenter-chaos-") as made, nursery() as loaded:
        for engine in ENGINES:
            folder = Path(made) / engine
            folder.mkdir()
            seeds = range(FIRST, FIRST + ROUNDS)
            played[engine] = [
                play(seed, url, folder, loaded) for seed, url in zip(seeds, databases(engine, folder), strict=True)
            ]
    text = table(played, time.monotonic() - began)
    print(text)
    if ROUNDS >= 100 or "BENCH_PUBLISH" in os.environ:
        publish(text)
    if any(one.failed for rounds in played.values() for one in rounds):
        raise SystemExit("chaos: the oracle found rounds wrong; their seeds stand above")


# --- a database for each round -------------------------------------------------------------------------------------


def databases(engine: str, folder: Path) -> Iterator[str]:
    """The addresses of as many migrated, empty databases as are asked for, one after the other."""
    if engine == "sqlite":
        yield from files(folder)
        return
    with cluster() as made:
        for one in range(ROUNDS):
            yield made.create(f"round_{one}", "template_isocenter")
            made.drop(f"round_{one}")


def files(folder: Path) -> Iterator[str]:
    template = folder / "template.sqlite"
    store = Store(f"sqlite:///{template}")
    schema.migrate(store)
    store.close()
    for one in range(ROUNDS):
        path = folder / f"round-{one}.sqlite"
        shutil.copy(template, path)
        yield f"sqlite:///{path}"
        for left in folder.glob(f"{path.name}*"):
            left.unlink()


# --- a round -------------------------------------------------------------------------------------------------------


def play(seed: int, url: str, folder: Path, loaded: Nursery) -> Round:
    """One round in a folder that goes with it, unless it failed."""
    place = folder / f"seed-{seed}"
    place.mkdir()
    done = chaos.play(seed, url, place, loaded)
    said, faults = done.verdict, sum(done.done[name] for name in chaos.FAULTS)
    print(
        f"{done.engine:<20} seed {seed:<6} {done.seconds:5.1f} s"
        f"  deeds {done.done.total() - faults:>3}  faults {faults:>3}"
        f"  studies {said.studies:>3}  instances {said.instances:>4}  withdrawn {said.withdrawn:>3}"
        f"  versions {said.versions:>4}  lost {said.lost}  doubled {said.duplicated}",
        flush=True,
    )
    if done.failed:
        print(done.told(), flush=True)
    shutil.rmtree(place, ignore_errors=True)
    return done


# --- the table -----------------------------------------------------------------------------------------------------


def table(played: dict[str, list[Round]], seconds: float) -> str:
    seeds = f"seeds {FIRST} to {FIRST + ROUNDS - 1}"
    head = (
        f"{datetime.now(UTC).date()}: {seeds} on each engine, {chaos.STEPS} steps each, in {seconds / 60:.0f} minutes"
        f" on {len(os.sched_getaffinity(0))} cores.\n"
    )
    names = {"sqlite": "SQLite", "postgres": "PostgreSQL"}
    lines = [head, f"| | {' | '.join(names[one] for one in played)} |", f"|---|{'---|' * len(played)}"]
    columns = [column(rounds) for rounds in played.values()]
    lines += [f"| {name} | {' | '.join(one[name] for one in columns)} |" for name in columns[0]]
    return "\n".join(lines)


def column(rounds: Sequence[Round]) -> dict[str, str]:
    done = sum((one.done for one in rounds), Counter[str]())
    said = [one.verdict for one in rounds]
    wrong = [str(one.seed) for one in rounds if one.failed]
    killed = f"{done['kill worker']:,} / {done['kill archive']:,}"
    network = sum(done[name] for name in ("cut", "stall", "slow", "break off"))
    return {
        "rounds": f"{len(rounds):,}",
        "deeds (stored, deleted, overwritten, modified, anonymised, merged, split …)": (
            f"{sum(done[name] for name in chaos.DEEDS):,}"
        ),
        "kill -9 of a worker / of Orthanc": killed,
        "network cut, stalled, slowed, broken off": f"{network:,}",
        "change log cleared": f"{done['clear changes']:,}",
        "archive emptied / put back to an older copy": f"{done['wipe']:,} / {done['restore']:,}",
        "worker frozen until others had its work": f"{done['freeze']:,}",
        "reconcile or rebuild killed": f"{done['kill reconcile'] + done['kill rebuild']:,}",
        "withdrawals held back until a person accepted": f"{done['held back']:,}",
        "studies / instances compared at the end": (
            f"{sum(one.studies for one in said):,} / {sum(one.instances for one in said):,}"
        ),
        "studies withdrawn": f"{sum(one.withdrawn for one in said):,}",
        "versions written, of them before the reconcile": (
            f"{sum(one.versions for one in said):,}, {sum(one.before for one in rounds):,}"
        ),
        "**lost**": f"**{sum(one.lost for one in said)}**",
        "**doubled**": f"**{sum(one.duplicated for one in said)}**",
        "rounds in which the oracle found anything wrong": ", ".join(wrong) or "0",
        "seconds for a round, middle": f"{statistics.median(one.seconds for one in rounds):.1f}",
    }


def publish(text: str) -> None:
    """Put the table between its marks in docs/benchmarks.md."""
    before, _, rest = PAGE.read_text().partition(START)
    PAGE.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
    sys.exit()

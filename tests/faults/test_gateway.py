"""The gateway when its archive talks nonsense, hangs, fails, restarts or breaks off (PS3.18 section 8.5, W06).

What was announced as whole is whole, what cannot be had is 503 with a Retry-After, and afterwards all is as before.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from pydicom.dataset import Dataset

from tests.faults.proxy import Proxy
from tests.hostile.credentials import Mint
from tests.hostile.server import serving
from tests.hostile.wire import Answer, Ask, Wire
from tests.hostile.world import ADA, Seeded, World, empty, fill, objects
from tests.orthanc.conftest import Orthanc, orthanc
from tests.processes import free_port, wait_until

__all__ = ["orthanc"]

pytestmark = pytest.mark.orthanc

STUDY = Seeded("2.25.771201", "LEMURS", ADA, 11)
OTHER = Seeded("2.25.771202", "TAPIRS", ADA, 13)
FRAMES = 1000
"""Two megabytes each: more than any buffer between archive and client."""
ADDRESSES = (
    "",
    "/metadata",
    "/rendered",
    "/series/{series}",
    "/series/{series}/instances",
    "/series/{series}/metadata",
    "/series/{series}/instances/{instance}",
    "/series/{series}/instances/{instance}/frames/1",
    "/series/{series}/instances/{instance}/frames/1,2,3",
    "/series/{series}/instances/{instance}/rendered",
    "/series/{series}/instances/{instance}/thumbnail",
    "/series/{series}/instances/{instance}/bulkdata/7FE00010",
    "/series/{series}/instances/{instance}/bulkdata/00400555/1/00420011",
)
NONSENSE = (*(b"", b"{nonsense", b"{}", b"null", b'[{"ID": 1}]', b'{"ID": "x", "MainDicomTags": []}', b"[" * 5000),)
FAILURES = ("500 Internal Server Error", "401 Unauthorized", "403 Forbidden", "503 Service Unavailable")


@dataclass(frozen=True, slots=True)
class Site:
    """The server, and the network between it and its archive."""

    world: World
    network: Proxy
    token: str
    stranger: str
    pid: int

    def ask(self, path: str, token: str = "", accept: str = "*/*") -> Answer:
        """One request on a connection of its own, its body as far as it came."""
        wire = Wire(("127.0.0.1", self.world.settings.port), timeout=90)
        place = path.format(series=STUDY.series(), instance=STUDY.instance())
        headers = ((b"Authorization", f"Bearer {token or self.token}".encode()), (b"Accept", accept.encode()))
        try:
            return wire.ask(Ask(b"GET", f"/dicom-web/studies/{STUDY.uid}{place}".encode(), headers), alone=True)
        finally:
            wire.close()

    def resident(self) -> int:
        """The server's memory in MB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) // 1024


def large(study: Seeded) -> Iterator[Dataset]:
    for dataset in objects(study):
        dataset.NumberOfFrames = FRAMES
        dataset.PixelData = dataset.PixelData[: 32 * 32 * 2] * FRAMES
        yield dataset


@pytest.fixture(scope="module")
def everything(orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("faults")
    with empty(orthanc, folder, free_port()) as world, Proxy(urlsplit(orthanc.url).port or 0) as network:
        fill(world, [*large(STUDY), next(objects(OTHER))])
        mint = Mint(world)
        mint.register()
        token = mint.token(mint.grant("system/ImagingStudy.rs"))
        stranger = mint.token(mint.grant("patient/ImagingStudy.rs", studies=[OTHER.uid]))
        behind = {"ISOCENTER_ORTHANC_URL": f"http://127.0.0.1:{network.port}", "ISOCENTER_CACHE_MB": "0"}
        with serving(world, folder / "serve.log", **behind) as pid:
            yield Site(world, network, token, stranger, pid)


@pytest.fixture
def at(everything: Site) -> Iterator[Site]:
    yield everything
    everything.network.restore()


def good(at: Site) -> dict[str, tuple[int, int]]:
    """Status and length of every address while nothing is wrong."""
    answers = {path: at.ask(path) for path in ADDRESSES}
    assert {answer.status for answer in answers.values()} == {200}
    assert all(answer.whole for answer in answers.values())
    return {path: (answer.status, len(answer.body)) for path, answer in answers.items()}


def unavailable(answer: Answer) -> bool:
    """503 with whole seconds to wait, as problem details that name nothing inside."""
    after, kind = answer.header(b"retry-after"), answer.header(b"content-type")
    assert STUDY.word.encode() not in answer.body
    return answer.status == 503 and after.isdigit() and int(after) > 0 and kind == b"application/problem+json"


def faults(at: Site, before: dict[str, tuple[int, int]]) -> list[str]:
    """The addresses whose answer is neither a refusal nor what it was before."""
    wrong: list[str] = []
    for path in ADDRESSES:
        answer = at.ask(path)
        # A value may be empty.
        empty = "/bulkdata/" in path and answer.parts() == [b""]
        same = empty or (answer.whole and (answer.status, len(answer.body)) == before[path])
        broken = answer.status == 200 and not answer.whole
        if not (unavailable(answer) or same or broken):
            wrong.append(f"{path or '/'}: {answer.status} {answer.body[:60]!r}")
    return wrong


@pytest.mark.ps318("8.5")
def test_nonsense_from_the_archive_is_never_passed_on_as_an_answer(at: Site) -> None:
    before, found = good(at), list[str]()
    for body in NONSENSE:
        at.network.restore()
        assert at.ask("/series").status == 200
        at.network.say("200 OK", body)
        found += [f"{body[:20]!r} just after a look at {fault}" for fault in faults(at, before)]
        wait_for_a_new_look()
        found += [f"{body[:20]!r} at {fault}" for fault in faults(at, before)]
    assert not found, "\n".join(found)
    at.network.restore()
    assert good(at) == before


@pytest.mark.ps318("8.5")
def test_w06_a_failing_archive_is_told_as_unavailable_with_a_time_to_come_back(at: Site) -> None:
    before, found = good(at), list[str]()
    for status in FAILURES:
        at.network.say(status, b'{"Message": "LEMURS inside"}')
        wait_for_a_new_look()
        found += [f"{status} at {fault}" for fault in faults(at, before)]
    assert not found, "\n".join(found)
    at.network.cut()
    assert unavailable(at.ask(""))
    at.network.restore()
    assert good(at) == before


def wait_for_a_new_look() -> None:
    """What was read of a study a moment ago still answers for it: let it grow old."""
    threading.Event().wait(1.1)


@pytest.mark.parametrize("count", [1, 2_000, 70_000, 1_500_000, 2_100_000, 4_500_000, 8_000_000])
def test_a_stream_that_the_archive_breaks_off_is_never_whole(at: Site, count: int) -> None:
    stored = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    whole = at.ask("", accept=stored)
    assert whole.whole
    at.network.break_after(count)
    answer = at.ask("", accept=stored)
    at.network.restore()
    complete = answer.status == 200 and answer.whole
    assert not complete or answer.body == whole.body
    assert answer.status in {200, 503, 0}
    again = at.ask("", accept=stored)
    assert (again.whole, len(again.body)) == (True, len(whole.body))


def test_an_archive_that_hangs_holds_up_only_who_needs_it(at: Site) -> None:
    before = good(at)
    at.network.stall()
    answers: list[Answer] = []
    waiting = [threading.Thread(target=lambda: answers.append(at.ask("", at.token))) for _ in range(12)]
    for one in waiting:
        one.start()
    denied = at.ask("/metadata", at.stranger)
    assert denied.status == 403
    health = httpx.get(f"http://127.0.0.1:{at.world.settings.port}/health", trust_env=False, timeout=5)
    assert health.is_success
    assert answers == []
    at.network.restore()
    for one in waiting:
        one.join(60)
    assert {(answer.status, answer.whole) for answer in answers} == {(200, True)}
    assert good(at) == before


def test_an_archive_that_restarts_in_mid_stream_is_used_again(at: Site) -> None:
    before = good(at)
    at.network.slow(0.002)
    answers: list[Answer] = []
    readers = [threading.Thread(target=lambda: answers.append(at.ask(""))) for _ in range(6)]
    for one in readers:
        one.start()
    threading.Event().wait(0.5)
    at.network.cut()
    for one in readers:
        one.join(60)
    assert len(answers) == 6
    assert not [answer for answer in answers if answer.status == 200 and answer.whole]
    at.network.restore()
    assert good(at) == before


def test_callers_who_go_away_leave_nothing_behind(at: Site) -> None:
    """More of them than there are connections to the archive; and the server does not grow."""
    before = good(at)
    at.network.stall()
    for _ in range(20):
        with pytest.raises(httpx.ReadTimeout):
            leaving(at, 0.05)
    at.network.restore()
    wait_until(lambda: at.ask("/metadata").status == 200, "a connection to the archive", 30)
    assert good(at) == before
    sizes: list[int] = []
    for _ in range(3):
        for _ in range(10):
            at.network.break_after(3_000_000)
            at.ask("")
        at.network.restore()
        assert good(at) == before
        sizes.append(at.resident())
    # The first rounds fill what the allocator keeps.
    assert sizes[2] < sizes[1] + 30, sizes


def leaving(at: Site, seconds: float) -> None:
    url = f"http://127.0.0.1:{at.world.settings.port}/dicom-web/studies/{STUDY.uid}"
    httpx.get(
        url, headers={"Authorization": f"Bearer {at.token}"}, timeout=httpx.Timeout(5, read=seconds), trust_env=False
    )

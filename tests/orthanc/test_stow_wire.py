"""STOW-RS over bare sockets, into a gateway in a process of its own: broken, slow, huge and refused uploads."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.dicom.orthanc import Orthanc
from app.store import schema, studies
from app.store.database import Store
from tests.orthanc.conftest import Orthanc as Archive
from tests.orthanc.gateway import U, fill
from tests.orthanc.phantoms import part10, report
from tests.orthanc.wires import Wires, wires
from tests.processes import answers, free_port, program, wait_until
from tests.processes import running as running_program

pytestmark = pytest.mark.orthanc

MARK = "frontier"
RELATED = f'multipart/related; type="application/dicom"; boundary={MARK}'
NAME = f"{U}.9.1"
LARGE_MB = int(os.environ.get("ISOCENTER_STOW_MB", "200"))
"""2048 in a bench."""
CEILING_MB = 60
"""So much the gateway's memory may grow while it takes a large upload."""
ROOT = Path(__file__).parents[2]


def document(name: str = NAME, text: str = "seen") -> bytes:
    return part10(report(mrn="A", study=U, series=f"{U}.9", instance=name, text=text))


def wrapped(*contents: bytes) -> bytes:
    parts = [f"--{MARK}\r\nContent-Type: application/dicom\r\n\r\n".encode() + one + b"\r\n" for one in contents]
    return b"".join(parts) + f"--{MARK}--\r\n".encode()


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass(slots=True)
class Desk:
    """A gateway process, and what it needs to be started again."""

    port: int
    told: Path
    spool: Path
    command: Sequence[str]
    log: Path
    archive: Orthanc
    store: Store
    process: subprocess.Popen[bytes] = field(init=False)

    def head(self, *lines: str, study: str = U, grant: str = "writer", kind: str = RELATED) -> bytes:
        first = (f"POST /dicom-web/studies/{study} HTTP/1.1", "Host: x", f"Authorization: Bearer {grant}")
        return "\r\n".join((*first, f"Content-Type: {kind}", *lines, "", "")).encode()

    def open(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def send(self, body: bytes, *lines: str, **how: str) -> Reply:
        """One upload whose whole length is told, on a connection of its own."""
        with self.open() as connection:
            head = self.head(f"Content-Length: {len(body)}", *lines, **how)
            connection.sendall(head + body)
            return read(connection)

    def curl(self, *arguments: str, body: bytes = b"") -> Reply:
        address = f"http://127.0.0.1:{self.port}/dicom-web/studies/{U}"
        fixed = ("-sSi", "-H", "Authorization: Bearer writer", "--max-time", "60", address)
        done = subprocess.run([program("curl"), *fixed, *arguments], input=body, capture_output=True, check=True)
        return parsed(done.stdout)

    def details(self) -> list[dict[str, Any]]:
        return [line for text in self.told.read_bytes().splitlines() if isinstance(line := orjson.loads(text), dict)]

    def held(self) -> set[str]:
        return everything(self.archive)

    def files(self) -> list[str]:
        """What lies in the spool's folder, and nameless files that are open."""
        links = [str(one.readlink()) for one in Path(f"/proc/{self.process.pid}/fd").iterdir() if one.is_symlink()]
        return [one for one in links if str(self.spool) in one] + [one.name for one in self.spool.glob("*")]

    def peak_kb(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]


def everything(archive: Orthanc) -> set[str]:
    series = [one for study in archive.study_ids() for one in archive.series_of(study)]
    return {instance for one in series for instance in one["Instances"]}


def read(connection: socket.socket) -> Reply:
    """One answer; interim ones are passed over."""
    octets = b""
    while True:
        while b"\r\n\r\n" not in octets:
            chunk = connection.recv(65536)
            assert chunk, "closed without an answer"
            octets += chunk
        if not octets.startswith(b"HTTP/1.1 100"):
            break
        octets = octets.partition(b"\r\n\r\n")[2]
    length = int(re.search(rb"(?i)content-length: (\d+)", octets)[1])  # type: ignore[index]
    while len(octets.partition(b"\r\n\r\n")[2]) < length:
        octets += connection.recv(65536)
    return parsed(octets)


def parsed(octets: bytes) -> Reply:
    head, _, body = octets.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100"):
        head, _, body = body.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return Reply(int(lines[0].split()[1]), headers, body)


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


@contextmanager
def started(archive: Archive, filled: Store, folder: Path, **told: Any) -> Iterator[Desk]:
    folder.mkdir(exist_ok=True)
    port, spool = free_port(), folder / "spool"
    rules = told.pop("rules", {}) | {"folder": str(spool)}
    where = {"database": str(filled.url), "port": port, "told": str(folder / "told")}
    credential = [archive.url, archive.username, archive.password]
    arguments = json.dumps(where | {"orthanc": credential, "rules": rules} | told)
    (folder / "told").write_bytes(b"")
    command = [sys.executable, "-m", "tests.orthanc.gateway_process", arguments]
    with Orthanc(archive.url, archive.username, archive.password) as orthanc:
        desk = Desk(port, folder / "told", spool, command, folder / "gateway.log", orthanc, filled)
        with up(desk):
            yield desk


@contextmanager
def up(desk: Desk) -> Iterator[None]:
    with running_program(desk.command, desk.log, cwd=ROOT) as process:
        desk.process = process

        def listens() -> bool:
            try:
                desk.open().close()
            except OSError:
                return False
            return True

        answers(process, desk.log, listens, "the gateway")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wire")


@pytest.fixture(scope="module")
def filled(orthanc: Archive, folder: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{folder / 'store.sqlite'}")
    schema.migrate(store)
    with Orthanc(orthanc.url, orthanc.username, orthanc.password) as archive:
        fill(archive, store)
        yield store
        for study in list(archive.study_ids()):
            archive.delete_study(study)
    store.close()


@pytest.fixture(scope="module")
def serving(orthanc: Archive, filled: Store, folder: Path) -> Iterator[Desk]:
    rules = {"limits": {"body": (LARGE_MB + 50) << 20, "part": (LARGE_MB + 50) << 20, "parts": 50}}
    with started(orthanc, filled, folder, rules=rules | {"pace": {"idle": 2.0, "slowest": 1000}}) as desk:
        yield desk


@pytest.fixture
def desk(serving: Desk) -> Iterator[Desk]:
    """The gateway, with nothing in the archive but what was there before."""
    before = serving.held()
    serving.told.write_bytes(b"")
    yield serving
    for instance in serving.held() - before:
        serving.archive.delete_instance(instance)


def test_an_upload_broken_off_at_any_byte_leaves_nothing(desk: Desk) -> None:
    body, before = wrapped(document(), document(f"{U}.9.2")), desk.held()
    cuts = sorted({0, 1, 5, 11, 40, 51, 60, 200, len(body) // 2, *range(len(body) - 20, len(body))})
    for cut in cuts:
        with desk.open() as connection:
            connection.sendall(desk.head(f"Content-Length: {len(body)}") + body[:cut])
    wait_until(lambda: len(desk.details()) == len(cuts), "every broken upload to be noticed")
    assert [(one["outcome"], one["detail"]) for one in desk.details()] == [("failed", {"status": 400})] * len(cuts)
    assert desk.held() == before
    assert desk.files() == []


def test_a_chunked_upload_is_taken_and_a_broken_one_is_not(desk: Desk) -> None:
    body, before = wrapped(document()), desk.held()
    chunks = [body[at : at + 100] for at in range(0, len(body), 100)]
    coded = b"".join(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n" for chunk in chunks)
    for wrong in (coded, coded[:500] + b"zz\r\nnonsense", coded.replace(b"64\r\n", b"-4\r\n", 1)):
        with desk.open() as connection:
            connection.sendall(desk.head("Transfer-Encoding: chunked") + wrong)
    wait_until(lambda: len(desk.details()) >= 2, "the broken uploads to be noticed")
    assert desk.held() == before
    with desk.open() as connection:
        connection.sendall(desk.head("Transfer-Encoding: chunked") + coded + b"0\r\n\r\n")
        assert read(connection).status == 200


def test_one_connection_serves_uploads_and_refusals_that_were_read_to_the_end(desk: Desk) -> None:
    good, broken = wrapped(document()), wrapped(document())[:-20]
    with desk.open() as connection:
        for body, status in ((good, 200), (broken, 400), (good, 200)):
            connection.sendall(desk.head(f"Content-Length: {len(body)}") + body)
            assert read(connection).status == status


@pytest.mark.parametrize(
    ("how", "line", "status"),
    [
        ({"grant": "nobody"}, "X: y", 401),
        ({"grant": "one-study"}, "X: y", 403),
        ({"study": "1.2.999"}, "X: y", 403),
        ({"kind": "application/dicom+json"}, "X: y", 415),
        ({"kind": "multipart/related; type=application/dicom"}, "X: y", 400),
        ({}, "Content-Encoding: gzip", 415),
        ({}, "Accept: application/dicom+xml", 406),
        ({}, "Accept: text/html;q=0.9, application/dicom+xml", 406),
    ],
)
def test_what_is_refused_before_it_is_sent_is_not_asked_for_and_ends_the_connection(
    desk: Desk, how: dict[str, str], line: str, status: int
) -> None:
    before, body = desk.held(), wrapped(document())
    with desk.open() as connection:
        connection.sendall(desk.head(f"Content-Length: {len(body)}", "Expect: 100-continue", line, **how))
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.recv(65536)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"connection: close" in answer.lower()
    # Whoever sends at once gets the same answer, though nobody reads the body.
    reply = desk.send(body, line, **how)
    assert (reply.status, reply.headers["connection"]) == (status, "close")
    assert desk.held() == before


def test_a_client_that_waits_for_leave_gets_it(desk: Desk) -> None:
    body = wrapped(document())
    with desk.open() as connection:
        connection.sendall(desk.head(f"Content-Length: {len(body)}", "Expect: 100-continue"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n")
        connection.sendall(body)
        assert read(connection).status == 200


def test_a_body_that_is_too_large_is_refused_before_and_while_it_is_sent(desk: Desk) -> None:
    limit, before = (LARGE_MB + 50) << 20, desk.held()
    with desk.open() as connection:
        connection.sendall(desk.head(f"Content-Length: {limit + 1}") + wrapped(document()))
        reply = read(connection)
        assert (reply.status, reply.headers["connection"]) == (413, "close")
    parts = wrapped(*[b"x"] * 51)
    assert desk.send(parts).status == 413
    assert desk.send(f"--{MARK}\r\nX: {'y' * 9000}\r\n\r\nz\r\n--{MARK}--".encode()).status == 400
    assert desk.held() == before
    assert desk.files() == []


def test_slow_uploads_end(desk: Desk) -> None:
    body, before = wrapped(document()), desk.held()
    with desk.open() as silent, desk.open() as trickling:
        for connection in (silent, trickling):
            connection.sendall(desk.head(f"Content-Length: {len(body)}") + body[:10])
        began, at = time.monotonic(), 10
        # A byte now and then does not help: so slow an upload would hold its place for hours.
        while not select_readable(trickling, 0.2) and time.monotonic() - began < 20:
            trickling.sendall(body[at : at + 1])
            at += 1
        for connection in (silent, trickling):
            reply = read(connection)
            assert (reply.status, reply.headers["connection"]) == (408, "close")
            assert is_closed(connection)
    assert at < 100
    assert desk.held() == before
    assert desk.files() == []


def select_readable(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False
    finally:
        connection.settimeout(30)


def large_document(size: int) -> tuple[bytes, bytes]:
    """A report with a private element of so many bytes: what comes before and after them."""
    dataset = report(mrn="A", study=U, series=f"{U}.9", instance=NAME)
    dataset.add_new(0x00990010, "LO", "BULK")
    dataset.add_new(0x00991001, "OB", b"")
    octets = part10(dataset)
    mark = b"\x99\x00\x01\x10OB\0\0"
    at = octets.index(mark) + len(mark)
    return octets[:at] + size.to_bytes(4, "little"), octets[at + 4 :]


def test_a_large_upload_takes_little_memory(desk: Desk) -> None:
    assert desk.send(wrapped(document(f"{U}.9.5"))).status == 200
    Path(f"/proc/{desk.process.pid}/clear_refs").write_text("5")
    before, bulk = desk.peak_kb(), bytes(1 << 20)
    first, last = large_document(LARGE_MB << 20)
    opening = f"--{MARK}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    closing = f"\r\n--{MARK}--\r\n".encode()
    length = len(opening) + len(first) + (LARGE_MB << 20) + len(last) + len(closing)
    with desk.open() as connection:
        connection.settimeout(300)
        connection.sendall(desk.head(f"Content-Length: {length}") + opening + first)
        for _ in range(LARGE_MB):
            connection.sendall(bulk)
        connection.sendall(last + closing)
        assert read(connection).status == 200
    grown = (desk.peak_kb() - before) // 1024
    print(f"an upload of {LARGE_MB} MB: the gateway grew by {grown} MB")
    assert grown < CEILING_MB
    assert desk.files() == []


def test_curl_stores_one_file_alone_and_several_together(desk: Desk, tmp_path: Path) -> None:
    content = document()
    alone = desk.curl("-H", "Content-Type: application/dicom", "--data-binary", "@-", body=content)
    assert alone.status == 200
    assert alone.json["00081199"]["Value"][0]["00081155"]["Value"] == [NAME]
    kind = 'multipart/related; type="application/dicom"'
    for number in (2, 3):
        (tmp_path / str(number)).write_bytes(document(f"{U}.9.{number}"))
    files = [part for number in (2, 3) for part in ("-F", f"file=@{tmp_path / str(number)};type=application/dicom")]
    together = desk.curl("-H", f"Content-Type: {kind}", *files)
    assert together.status == 200
    assert len(together.json["00081199"]["Value"]) == 2


def test_a_client_that_leaves_before_the_answer_has_stored_all_the_same(desk: Desk) -> None:
    body = wrapped(document())
    with desk.open() as connection:
        connection.sendall(desk.head(f"Content-Length: {len(body)}") + body)
        wait_until(lambda: desk.archive.instances_with_uid(NAME), "the object to be stored")
    reply = desk.send(body)
    assert reply.status == 200
    wait_until(lambda: len(desk.details()) == 2, "both to be audited")
    assert sorted(one["detail"].get("known", 0) for one in desk.details()) == [0, 1]


@pytest.fixture(scope="module")
def laid(orthanc: Archive) -> Iterator[Wires]:
    with wires(orthanc.url) as laid:
        yield laid


@pytest.fixture(scope="module")
def narrow(orthanc: Archive, filled: Store, laid: Wires, folder: Path) -> Iterator[Desk]:
    """Another one that takes one upload of a grant at a time, cannot write large files, and whose archive is shaky."""
    shaky = Archive(laid.url, orthanc.dicom_host, 0, "", orthanc.username, orthanc.password)
    bounds = {"gate": {"together": 2, "each": 1}, "largest_file": 8 << 20}
    with started(shaky, filled, folder / "narrow", **bounds) as desk:
        yield desk


def test_uploads_at_the_same_time_are_bounded(narrow: Desk, desk: Desk) -> None:
    body = wrapped(document())
    with narrow.open() as first:
        first.sendall(narrow.head(f"Content-Length: {len(body)}") + body[:100])
        wait_until(narrow.files, "the first upload to begin")
        reply = narrow.send(body)
        assert (reply.status, reply.headers["retry-after"]) == (503, "5")
        assert narrow.send(body, grant="one-study").status == 403
        first.sendall(body[100:])
        assert read(first).status == 200
    assert narrow.send(body).status == 200


def test_a_full_disk_is_told_and_nothing_is_stored(narrow: Desk, desk: Desk) -> None:
    before = desk.held()
    first, last = large_document(12 << 20)
    reply = narrow.send(wrapped(document(f"{U}.9.2"), first + bytes(12 << 20) + last))
    assert (reply.status, reply.headers["retry-after"]) == (503, "60")
    assert narrow.files() == []
    assert desk.held() == before
    assert narrow.send(wrapped(document())).status == 200


def test_a_process_killed_while_it_stores_leaves_nothing_half_done(
    narrow: Desk, laid: Wires, filled: Store, desk: Desk
) -> None:
    before, body = desk.held(), wrapped(document(), document(f"{U}.9.2"))
    laid.mend()
    laid.only("POST /instances", "hang", after=1)
    with narrow.open() as connection:
        connection.sendall(narrow.head(f"Content-Length: {len(body)}") + body)
        wait_until(lambda: sum(one == "POST /instances" for one in laid.asked) == 2, "the second to be on its way")
        assert narrow.files()
        os.killpg(narrow.process.pid, signal.SIGKILL)
        narrow.process.wait(10)
        assert is_closed(connection)
    assert list(narrow.spool.glob("*")) == []
    # The first is there and known; of the second only who tried.
    assert len(desk.held() - before) == 1
    with filled.read() as reading:
        assert studies.stowed(reading, NAME) is not None
    laid.mend()
    with up(narrow):
        reply = narrow.send(body)
        assert reply.status == 200
        assert len(reply.json["00081199"]["Value"]) == 2
    assert len(desk.held() - before) == 2

"""How much work a large study is, from the archive's answers to what is stored (app.workflow.arrivals)."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from sqlalchemy.event import listen

from app.dicom.orthanc import Orthanc
from app.fhir import resources
from app.settings import Settings
from app.store import schema, sync
from app.store.database import Store
from app.workflow import arrivals, site

CT = "1.2.840.10008.5.1.4.1.1.2"
TAGS = {"0008,0060": "CT", "0010,0010": "Large^Study", "0010,0020": "L-1", "0020,0011": "1"}


def answers(instances: int) -> dict[str, Any]:
    """What an archive says that holds one study of so many images."""
    ids = [f"i{number}" for number in range(instances)]
    held = [
        {
            "ID": one,
            "MainDicomTags": {"SOPInstanceUID": f"1.2.3.1.{number + 1}", "InstanceNumber": str(number + 1)},
            "FileUuid": f"file-{number}",
            "Metadata": {"SopClassUid": CT, "TransferSyntax": "1.2.840.10008.1.2.1"},
        }
        for number, one in enumerate(ids)
    ]
    study = {"ID": "large", "MainDicomTags": {"StudyInstanceUID": "1.2.3"}, "PatientMainDicomTags": {}}
    series = {"ID": "s", "MainDicomTags": {"SeriesInstanceUID": "1.2.3.1", "Modality": "CT"}, "Instances": ids}
    tags = {name: {"Type": "String", "Value": value} for name, value in TAGS.items()}
    return {"/studies/large/series": [series], "/tools/bulk-content": [study, *held], "": tags}


@contextmanager
def answering(told: dict[str, Any]) -> Generator[Orthanc]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.dumps(told.get(self.path, told[""])).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        with Orthanc(f"http://127.0.0.1:{server.server_port}") as orthanc:
            yield orthanc
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def transactions(folder: Path, instances: int) -> list[list[str]]:
    """The statements of each transaction that a look at a study of so many images takes."""
    folder.mkdir()
    statements: list[str] = []
    store = Store(f"sqlite:///{folder / 'store.sqlite'}")
    # Every connection is listened to, for none is open yet.
    listen(store.engine, "connect", lambda driver, _: driver.set_trace_callback(statements.append))
    schema.migrate(store)
    store.transact(lambda connection: sync.mark(connection, ["large"], "test"))
    try:
        with answering(answers(instances)) as orthanc:
            dirty = store.transact(sync.claim)
            assert dirty is not None
            statements.clear()
            arrivals.look_at(arrivals.Archive(store, orthanc, site.of(Settings(data_dir=folder))), dirty)
        told = [*statements]
        with store.read() as connection:
            known = sync.known(connection, "large")
            assert known is not None
            study = resources.read(connection, "ImagingStudy", known.imaging_study_id)
        assert study is not None
        assert study["numberOfInstances"] == len(study["series"][0]["instance"]) == instances
    finally:
        store.close()
    split = groupby(told, lambda one: one in {"BEGIN", "ROLLBACK", "BEGIN IMMEDIATE", "COMMIT"})
    return [list(group) for is_limit, group in split if not is_limit]


def writes(transaction: list[str]) -> list[str]:
    return [one for one in transaction if one.startswith(("INSERT", "UPDATE", "DELETE"))]


@pytest.mark.case(47)
def test_a_study_of_10000_images_is_made_while_others_may_write_and_its_rows_are_in_line_with_its_images(
    tmp_path: Path,
) -> None:
    small, large = transactions(tmp_path / "small", 1000), transactions(tmp_path / "large", 10_000)
    # One finds out what the study depends on and writes nothing; all that is written is written by the last.
    assert [bool(writes(one)) for one in large] == [False] * (len(large) - 1) + [True]
    assert len(small) == len(large) >= 2
    # Reading takes as many statements however many images there are, and each image is one row.
    assert len(large[-1]) - len(small[-1]) <= 1.1 * 9000
    assert sum(one.startswith("INSERT INTO instance") for one in large[-1]) == 10_000
    assert len(large[-1]) - len(writes(large[-1])) == len(small[-1]) - len(writes(small[-1]))

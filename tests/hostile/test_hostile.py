"""No answer tells of a study that the caller may not see, whatever is asked and however (GW01 to GW21)."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import time
from collections.abc import Iterator

import pytest

from tests.hostile.conftest import Served
from tests.hostile.credentials import Credential, reading
from tests.hostile.suite import Suite, plain
from tests.hostile.wire import Answer, Ask, Header, Wire
from tests.hostile.world import GHOSTS, STUDIES, U, V, Z

pytestmark = pytest.mark.orthanc

ROUNDS = os.environ.get("HOSTILE_ROUNDS", "1")
"""How many tricks each pair of route and credential gets; `all` plays every one."""


@pytest.fixture(scope="module")
def suite(served: Served) -> Iterator[Suite]:
    wire = Wire(served.address)
    made = Suite(served.world, wire, served.credentials, random.Random(os.environ.get("HOSTILE_SEED", "5")))
    made.forbidden = [served.world.settings.orthanc_url.encode(), served.world.settings.orthanc_url[7:].encode()]
    made.harvest(served.named("system"))
    assert made.report.faults == []
    yield made
    wire.close()


def test_every_pair_of_route_and_credential_and_every_trick_is_refused_alike(
    served: Served, suite: Suite, capsys: pytest.CaptureFixture[str]
) -> None:
    before, began = served.world.state(), time.monotonic()
    chance = None if ROUNDS == "all" else suite.chance
    for shape, credential in suite.pairs():
        suite.honest(shape, credential, chance)
    suite.attack(None if ROUNDS == "all" else int(ROUNDS))
    suite.conditions()
    with capsys.disabled():
        print(f"\n  {suite.report} in {time.monotonic() - began:.1f} s")
    assert not suite.report.faults, "\n".join(suite.report.faults[:200])
    assert served.world.state() == before


def test_what_an_honest_caller_gets_is_the_same_after_the_campaign(served: Served, suite: Suite) -> None:
    before = {study: set(found) for study, found in suite.treasure.items()}
    suite.harvest(served.named("system"))
    assert suite.treasure == before
    assert not suite.report.faults


def test_no_credential_and_no_patient_is_in_the_log(served: Served, suite: Suite) -> None:
    log = served.log.read_text()
    assert "/dicom-web" in log
    assert not [secret for secret in served.mint.secrets if secret in log]
    assert not [word for study in STUDIES for word in (study.word, study.person.word) if word in log]


# --- the judge finds what it looks for ----------------------------------------------------------------------------


def multipart(content: bytes) -> tuple[Header, bytes]:
    head = b"--xy\r\nContent-Type: application/octet-stream\r\n\r\n"
    return (b"content-type", b"multipart/related; boundary=xy"), head + content + b"\r\n--xy--\r\n"


def told(suite: Suite, answer: Answer) -> list[str]:
    credential = Credential("one", b"/dicom-web", (), reading(U))
    return suite.leaks(credential, Ask(b"GET", b"/dicom-web/studies/" + V.uid.encode()), answer)


def test_the_judge_sees_words_uids_names_and_pixels_wherever_they_are(suite: Suite) -> None:
    assert told(suite, Answer(200, (), b"nothing " + V.uid.encode())) == []
    assert told(suite, Answer(200, (), b"x" + V.series().encode())) == []
    assert told(suite, Answer(200, (), b"x " + V.series().encode())) == [f"says {V.series()}"]
    assert told(suite, Answer(403, ((b"etag", V.word.encode()),), b"")) == [f"says {V.word}"]
    assert told(suite, Answer(200, (), Z.person.mrn.encode())) == ["names NUMBAT", "names NUMBAT-2"]
    zipped = gzip.compress(b"{}" + V.word.encode())
    assert told(suite, Answer(200, ((b"content-encoding", b"gzip"),), zipped)) == [f"says {V.word}"]
    kind, body = multipart(b"pixels of " + Z.uid.encode())
    assert told(suite, Answer(200, (kind,), body)) == [f"says {Z.uid}"]


def test_the_judge_knows_pictures_and_frames_by_their_bytes(suite: Suite) -> None:
    picture = b"a picture without a word, and longer than forty bytes"
    suite.treasure[Z].add(hashlib.sha256(picture).digest())
    kind, body = multipart(picture)
    assert told(suite, Answer(200, (), picture)) == ["gives bytes of GERENUK"]
    assert told(suite, Answer(200, (kind,), body)) == ["gives bytes of GERENUK"]


def test_the_judge_compares_status_headers_and_body(suite: Suite) -> None:
    ghost = GHOSTS[V]
    known = Answer(404, ((b"x-request-id", b"first"), (b"date", b"now")), b"first no " + V.uid.encode())
    unknown = Answer(404, ((b"x-request-id", b"second"), (b"date", b"then")), b"second no " + ghost.uid.encode())
    assert plain(known, (V, ghost)) == plain(unknown, (V, ghost))
    for other in (
        Answer(403, known.headers, known.body),
        Answer(404, (*known.headers, (b"etag", b"1")), known.body),
        Answer(404, known.headers, known.body + b"!"),
    ):
        assert plain(other, (V, ghost)) != plain(unknown, (V, ghost))

"""Any path, query, header and body is answered, never with a failure (5xx), by the server and by its parsers.

`FUZZ_EXAMPLES` (40) says how many of each are tried.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.dicom import multipart, paths, rendering
from app.errors import IsocenterError
from tests.hostile.conftest import Served
from tests.hostile.routes import words
from tests.hostile.tricks import FORMS
from tests.hostile.wire import Answer, Ask, Header, Wire
from tests.hostile.world import U, V

T = TypeVar("T")
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
many = settings(max_examples=EXAMPLES * 10, deadline=None, derandomize=True)

NAMES = (
    *("StudyInstanceUID", "PatientName", "00100020", "StudyDate", "StudyTime", "ModalitiesInStudy", "includefield"),
    *(
        "limit",
        "offset",
        "fuzzymatching",
        "SeriesDescription",
        "InstanceNumber",
        "NumberOfFrames",
        "0020000d",
        "accept",
    ),
    *("RequestAttributesSequence.ScheduledProcedureStepID", "00400275.00400009", "emptyvaluematching", "charset"),
    *("viewport", "window", "quality", "iccprofile", "annotation", "accept"),
)
VALUES = (
    U.uid,
    V.uid,
    "*",
    "?",
    "19700101-",
    "1,2",
    "-1",
    "1e9",
    "true",
    "all",
    "a\\b",
    "128,128",
    "50,400,linear",
    "",
)
TYPES = (
    "multipart/related",
    "application/dicom",
    "application/octet-stream",
    "image/*",
    "*/*",
    "image/png",
    "text/html",
)
segment = st.one_of(
    st.sampled_from([*words(), U.uid, U.series(), U.instance(), V.uid, "1", "1,2", "7FE00010", "00400555"]),
    st.sampled_from(FORMS).map(lambda form: form.format(U.uid, V.uid)),
    st.text(st.characters(codec="latin-1"), max_size=12),
)
queried = st.lists(
    st.tuples(
        st.one_of(st.sampled_from(NAMES), st.text(max_size=8)), st.one_of(st.sampled_from(VALUES), st.text(max_size=12))
    ),
    max_size=4,
)
parameter = st.tuples(
    st.sampled_from(["type", "transfer-syntax", "q", "x", "boundary"]), st.text('a1./\\"*;=, -', max_size=9)
)
ranges = st.lists(
    st.tuples(st.sampled_from(TYPES), st.lists(parameter, max_size=3)).map(
        lambda pair: pair[0] + "".join(f";{name}={value}" for name, value in pair[1])
    ),
    max_size=4,
).map(", ".join)
header_value = st.one_of(ranges, st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=40))


@pytest.fixture(scope="module")
def wire(served: Served) -> Iterator[Wire]:
    made = Wire(served.address)
    yield made
    made.close()


def bearer(served: Served, name: str = "system") -> tuple[Header, ...]:
    return served.named(name).headers


def answered(answer: Answer) -> None:
    """An answer that a client can use: whole, no failure, and problems told as problems."""
    assert 200 <= answer.status < 500, (answer.status, answer.body[:200])
    assert answer.whole
    if answer.status >= 400 and answer.header(b"content-type") == b"application/problem+json" and answer.body:
        assert json.loads(answer.body)["status"] == answer.status
    if answer.status == 200 and answer.header(b"content-type") == b"application/dicom+json":
        assert isinstance(json.loads(answer.body), list)


def understood(read: Callable[[], T]) -> T | None:
    """What was read, or None when it was refused as the caller's fault."""
    refused: IsocenterError | None = None
    try:
        return read()
    except IsocenterError as error:
        refused = error
    assert 400 <= refused.status < 500
    return None


def sendable(text: str) -> bytes:
    """Without what would end the request line."""
    return "".join("%20" if char in " \r\n\t#" else char for char in text).encode("utf-8", "replace")


@pytest.mark.orthanc
@pytest.mark.ps318("8.2", "8.5")
@fuzzed
@given(parts=st.lists(segment, max_size=9), method=st.sampled_from([b"GET", b"GET", b"HEAD", b"POST", b"OPTIONS"]))
def test_any_path_is_answered(served: Served, wire: Wire, parts: list[str], method: bytes) -> None:
    target = b"/dicom-web/" + b"/".join(sendable(part) for part in parts)
    answered_or_refused_by_the_server(wire.ask(Ask(method, target, bearer(served)), alone=True))


def answered_or_refused_by_the_server(answer: Answer) -> None:
    # What is no HTTP is refused before it comes to the gateway, in the web server's own words.
    if answer.status != 400:
        answered(answer)


@pytest.mark.orthanc
@pytest.mark.ps318("8.3.1", "8.3.2")
@fuzzed
@given(pairs=queried, path=st.sampled_from(["/studies", "/series", "/instances", f"/studies/{U.uid}/series"]))
def test_any_search_is_answered(served: Served, wire: Wire, pairs: list[tuple[str, str]], path: str) -> None:
    query = b"&".join(sendable(f"{name}={value}") for name, value in pairs)
    for credential in ("system", "one study"):
        asked = Ask(b"GET", f"/dicom-web{path}?".encode() + query, bearer(served, credential))
        answered_or_refused_by_the_server(wire.ask(asked, alone=True))


@pytest.mark.orthanc
@pytest.mark.ps318("8.4.1.1")
@fuzzed
@given(
    accept=header_value,
    kind=st.sampled_from(["", "/metadata", "/rendered", f"/series/{U.series()}/instances/{U.instance()}/frames/1"]),
)
def test_any_accept_header_is_answered(served: Served, wire: Wire, accept: str, kind: str) -> None:
    headers = (*bearer(served), (b"Accept", accept.strip().encode("latin-1")))
    answered_or_refused_by_the_server(
        wire.ask(Ask(b"GET", f"/dicom-web/studies/{U.uid}{kind}".encode(), headers), alone=True)
    )


@pytest.mark.orthanc
@pytest.mark.ps318("10.5.1")
@fuzzed
@given(
    kind=st.one_of(header_value, st.just('multipart/related; type="application/dicom"; boundary=x')),
    body=st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.sampled_from([b"--x", b"\r\n", b"--", b"Content-Type: application/dicom", b"DICM", b"\0" * 128])
        ).map(b"".join),
    ),
)
def test_any_upload_is_answered(served: Served, wire: Wire, kind: str, body: bytes) -> None:
    headers = (*bearer(served, "a writer"), (b"Content-Type", kind.strip().encode("latin-1")))
    answered_or_refused_by_the_server(wire.ask(Ask(b"POST", b"/dicom-web/studies", headers, body), alone=True))


@pytest.mark.ps318("8.2")
@many
@given(parts=st.lists(segment, max_size=9), method=st.sampled_from(["GET", "HEAD", "POST", "PUT"]))
def test_a_target_names_its_own_address_and_no_other(parts: list[str], method: str) -> None:
    """What is taken for an address is that address: written anew from the target it is the same."""
    raw = "".join(f"/{part}" for part in parts).encode("utf-8")
    target = understood(lambda: paths.parse(method, raw))
    if target is None:
        return
    assert raw.startswith(target.path().encode())
    assert paths.parse(method, raw) == target
    said = [part for part in parts if part[:1].isdigit() and "." in part]
    assert set(said) <= {target.study, target.series, target.instance}


@pytest.mark.ps318("8.7.3.5.1")
@many
@given(
    st.lists(
        st.tuples(
            st.sampled_from(TYPES),
            st.sampled_from(["*", "1.2.840.10008.1.2.1", None]),
            st.sampled_from(["application/dicom"]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_ranges_that_are_written_are_read_again(written: list[tuple[str, str | None, str]]) -> None:
    texts = [
        kind + f'; type="{part}"' + (f"; transfer-syntax={syntax}" if syntax else "") for kind, syntax, part in written
    ]
    read = multipart.media_types(", ".join(texts))
    assert [(one.type, one.transfer_syntax, one.parameters["type"]) for one in read] == written


@pytest.mark.ps318("8.3.5.1.3")
@many
@given(pairs=queried)
def test_any_rendering_parameter_is_read_or_refused(pairs: list[tuple[str, str]]) -> None:
    query = "&".join(f"{name}={value}" for name, value in pairs)
    understood(lambda: rendering.parse(query))


@pytest.mark.ps318("8.3.5.1.3")
@many
@given(width=st.integers(1, 4096), height=st.integers(1, 4096))
def test_a_viewport_that_is_written_is_read_again(width: int, height: int) -> None:
    assert rendering.parse(f"viewport={width},{height}") == rendering.parse(f"viewport={width}%2C{height}")


@pytest.mark.ps318("8.6.1")
@many
@given(contents=st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_an_answers_own_multipart_body_is_what_was_put_into_it(contents: list[bytes]) -> None:
    mark = multipart.boundary()
    body = b"".join(
        multipart.part_head(mark, "application/octet-stream") + content + b"\r\n" for content in contents
    ) + multipart.tail(mark)
    kind = b"multipart/related; boundary=" + mark.encode()
    assert Answer(200, ((b"content-type", kind),), body).parts() == contents

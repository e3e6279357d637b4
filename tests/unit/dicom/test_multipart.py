"""Media types as clients write them, and bodies however they are cut."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.dicom.multipart import Limits, MediaType, PartReader, content_type, media_types, part_head, tail
from app.dicom.spool import Spool
from app.errors import BadRequest, TooLarge

LIMITS = Limits(body=1 << 20, part=1 << 19, parts=50)
MARK = "mark"
DICOM, LENGTH = "application/dicom", "it has another length than it tells"
FUZZ = int(os.environ.get("ISOCENTER_FUZZ", "80"))


def read(body: bytes, size: int, mark: str = MARK) -> list[bytes]:
    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at : at + size]

    spool = Spool()
    try:
        parts = asyncio.run(PartReader(mark, LIMITS, spool).read(chunks(), MediaType("application/dicom")))
        contents = [b"".join(part.content) for part in parts]
        assert [part.content.size for part in parts] == [len(content) for content in contents]
        return contents
    finally:
        spool.close()


@given(
    st.lists(st.binary(max_size=200) | st.sampled_from([b"\r\n", b"--mark", b"\r\n--mar", b"--", b"\r"]), max_size=6),
    st.integers(1, 50),
)
@pytest.mark.ps318("8.6.1")
def test_parts_are_what_was_sent_however_the_body_is_cut(contents: list[bytes], size: int) -> None:
    contents = [content for content in contents if b"\r\n--mark" not in b"\r\n" + content + b"\r\n"]
    body = b"".join(part_head(MARK, "application/dicom") + content + b"\r\n" for content in contents) + tail(MARK)
    assert read(body, size) == contents


def test_a_part_without_headers_and_a_preamble_are_read() -> None:
    assert read(b"ignored\r\n--mark  \r\n\r\ncontent\r\n--mark--\r\nignored too", 7) == [b"content"]


@given(st.binary(max_size=120), st.integers(1, 30))
def test_no_body_breaks_the_reader(body: bytes, size: int) -> None:
    with pytest.raises(BadRequest):
        read(body, size)


@pytest.mark.parametrize(
    ("header", "part", "syntax"),
    [
        ("multipart/related; type=application/dicom; transfer-syntax=*", "application/dicom", "*"),
        ('multipart/related; type="application/dicom"; transfer-syntax=*', "application/dicom", "*"),
        ('multipart/related; type="application/dicom;transfer-syntax=1.2.3"', "application/dicom", "1.2.3"),
        ('Multipart/Related;TYPE="Application/DICOM"', "application/dicom", None),
        ("multipart/related", "*/*", None),
        ("application/dicom+json", "application/dicom+json", None),
        ("image/jp2;transfer-syntax=1.2.840.10008.1.2.4.90", "image/jp2", "1.2.840.10008.1.2.4.90"),
    ],
)
@pytest.mark.ps318("8.7.3.5.1")
def test_a_media_type_names_its_parts_and_syntax(header: str, part: str, syntax: str | None) -> None:
    media_type = content_type(header)
    assert (media_type.part, media_type.transfer_syntax) == (part, syntax)


@pytest.mark.ps318("8.4.1.1")
def test_ranges_come_in_the_order_of_preference() -> None:
    header = "image/png;q=0.1, multipart/related; type=image/jpeg, */*;q=0.5, image/gif;q=0"
    assert [one.type for one in media_types(header)] == ["multipart/related", "*/*", "image/png"]
    assert media_types("*/*") == [MediaType("*/*")]


@pytest.mark.parametrize("header", ["text", "a/b;q=x", "a/b c/d", 'a/b;c="d', "/", "a/b" + " " * 5000, ","])
def test_a_header_that_cannot_be_read_is_refused(header: str) -> None:
    with pytest.raises(BadRequest):
        media_types(header)


@given(st.text(max_size=60))
def test_no_text_breaks_the_header_parser(text: str) -> None:
    try:
        media_types(text)
    except BadRequest:
        return


def parts_of(body: bytes, mark: str = MARK, size: int = 11) -> list[tuple[str, bytes, str]]:
    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at : at + size]

    spool = Spool()
    try:
        parts = asyncio.run(PartReader(mark, LIMITS, spool).read(chunks(), MediaType("application/dicom")))
        return [(part.media_type.type, b"".join(part.content), part.fault) for part in parts]
    finally:
        spool.close()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"--mark\r\n\r\nx\r\n--mark--", [(DICOM, b"x", "")]),
        (b"--mark\r\nContent-Type: text/plain\r\n\r\nx\r\n--mark--\r\n", [("text/plain", b"x", "")]),
        (b"--mark \t\r\ncontent-type :\r\n  Application/DICOM;a=b\r\n\r\n\r\n--mark-- \r\n", [(DICOM, b"", "")]),
        (b"--mark\r\nX: y\r\n\r\n--mark--", [(DICOM, b"", "")]),
        (b"--mark\r\n\r\n--mark\r\n\r\n\r\n--mark--", [(DICOM, b"", "")] * 2),
        (b"--mark\r\nContent-Length: 1\r\n\r\nx\r\n--mark--", [(DICOM, b"x", "")]),
        (b"--mark\r\nContent-Length: 9\r\n\r\nx\r\n--mark--", [(DICOM, b"x", LENGTH)]),
        (b"--mark\r\nContent-Transfer-Encoding: BINARY\r\n\r\nx\r\n--mark--", [(DICOM, b"x", "")]),
        (b"--mark\r\nContent-Transfer-Encoding: base64\r\n\r\neA==\r\n--mark--", [(DICOM, b"eA==", "it is encoded")]),
        (b"preamble --mark\r\n--mark\r\n\r\nx\r\n--mark--\r\nepilogue\r\n--mark\r\n\r\ny\r\n", [(DICOM, b"x", "")]),
        (b"--mark\r\n\r\n\r\n--mar\r\n--marl\n--mark\r\r\n--mark--", [(DICOM, b"\r\n--mar\r\n--marl\n--mark\r", "")]),
    ],
)  # fmt: skip
def test_bodies_as_clients_write_them(body: bytes, expected: list[tuple[str, bytes, str]]) -> None:
    for size in (1, 2, 7, 1000):
        assert parts_of(body, size=size) == expected


@pytest.mark.parametrize(
    ("mark", "written"),
    [("'mark'", "'mark'"), ("'mark'", "mark"), ("a b:c?", "a b:c?"), ("=_{1};*", "=_{1};*"), ("x" * 70, "x" * 70)],
)
def test_boundaries_as_clients_spell_them(mark: str, written: str) -> None:
    body = f"--{written}\r\n\r\nx\r\n--{written}\r\n\r\ny\r\n--{written}--\r\n".encode()
    assert [content for _, content, _ in parts_of(body, mark)] == [b"x", b"y"]


@pytest.mark.parametrize("mark", ["", " ", "x ", "x" * 71, "é", "a\r\nb", "a\0b"])
def test_a_boundary_that_is_none_is_refused(mark: str) -> None:
    with pytest.raises(BadRequest):
        PartReader(mark, LIMITS, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"--mark", b"--mark\r\n", b"--mark-", b"--mark--x\r\n", b"--markx\r\n\r\nx\r\n--mark--",
        b"--mark\n\nx\n--mark--\n", b"--mark\r\n\r\nx", b"--mark\r\n\r\nx\r\n--mark", b"--mark\r\n\r\nx\r\n--mark-",
        b"--mark\r\n\r\nx--mark--",
        b"--mark\r\nno header\r\n\r\nx\r\n--mark--", b"--mark\r\nContent-Type: nonsense\r\n\r\nx\r\n--mark--",
        b"--mark\r\nContent-Type: a/b\r\nContent-Type: c/d\r\n\r\nx\r\n--mark--", b"--mark\r\n: x\r\n\r\nx\r\n--mark--",
        b"--mark" + b" " * 9000 + b"\r\n\r\nx\r\n--mark--", b"--mark\r\nX: " + b"y" * 9000 + b"\r\n\r\nx\r\n--mark--",
    ],
)  # fmt: skip
def test_a_body_that_is_none_is_refused(body: bytes) -> None:
    for size in (1, 3, 10_000):
        with pytest.raises(BadRequest):
            parts_of(body, size=size)


WORDS = [b"--mark", b"\r\n", b"--", b"\n", b"Content-Type: application/dicom", b": ", b"x" * 300, b"\r\n--mark\r\n\r\n"]


@settings(max_examples=FUZZ)
@given(st.lists(st.sampled_from(WORDS) | st.binary(max_size=20), max_size=30), st.integers(1, 64))
def test_a_body_is_read_or_refused_however_it_is_cut(pieces: list[bytes], size: int) -> None:
    body = b"".join(pieces)

    def outcome(size: int) -> object:
        try:
            return parts_of(body, size=size)
        except (BadRequest, TooLarge) as error:
            return type(error)

    assert outcome(size) == outcome(len(body) + 1)

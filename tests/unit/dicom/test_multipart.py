"""Media types as clients write them, and bodies however they are cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dicom.multipart import Limits, MediaType, PartReader, content_type, media_types, part_head, tail
from app.dicom.spool import Spool
from app.errors import BadRequest

LIMITS = Limits(body=1 << 20, part=1 << 19, parts=50)
MARK = "mark"


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
def test_a_media_type_names_its_parts_and_syntax(header: str, part: str, syntax: str | None) -> None:
    media_type = content_type(header)
    assert (media_type.part, media_type.transfer_syntax) == (part, syntax)


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

"""Which form of an answer the caller gets (PS3.18 8.3.3, 8.4.1, 8.7.5 to 8.7.8; RFC 9110 12.5.1)."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from app.dicom import accept
from app.dicom.accept import Form
from app.errors import BadRequest, NotAcceptable

JPEG, PNG, GIF = Form("image/jpeg"), Form("image/png"), Form("image/gif")
MANY_JPEG, MANY_PNG = Form("image/jpeg", is_multipart=True), Form("image/png", is_multipart=True)
OFFERED = (JPEG, PNG, GIF, MANY_JPEG, MANY_PNG)


def request(header: str | None = None, query: str = "", **headers: str) -> Request:
    sent = headers | ({"accept": header} if header is not None else {})
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in sent.items()]
    return Request({
        "type": "http", "method": "GET", "path": "/x", "server": ("h", 80), "scheme": "http",
        "headers": raw, "query_string": query.encode("latin-1"),
    })  # fmt: skip


def chosen(header: str | None = None, query: str = "") -> Form:
    return accept.select(request(header, query), OFFERED)[1]


@pytest.mark.parametrize(
    ("header", "form"),
    [
        (None, JPEG),
        ("", JPEG),
        ("*/*", JPEG),
        ("image/*", JPEG),
        ("image/png", PNG),
        ("IMAGE/PNG", PNG),
        ("image/jpeg;q=0.5, image/png;q=0.9", PNG),
        ("image/jpeg;q=0.5, image/*;q=0.9", JPEG),
        ("image/jpeg;q=0, image/*", PNG),
        ("*/*, image/jpeg;q=0, image/png;q=0.0", GIF),
        ("image/*;q=0, image/png", PNG),
        ("image/webp, image/avif, image/gif;q=0.1", GIF),
        ("text/html, image/avif, */*;q=0.8", JPEG),
        ('multipart/related; type="image/png"', MANY_PNG),
        ("multipart/related; type=image/png", MANY_PNG),
        ("Multipart/Related; Type=Image/PNG", MANY_PNG),
        ('multipart/related; type="image/*"', MANY_JPEG),
        ("multipart/related", MANY_JPEG),
        ("multipart/*", MANY_JPEG),
        ('multipart/related; type="image/jp2", multipart/related; type="image/png";q=0.2', MANY_PNG),
    ],
)
def test_the_most_wanted_range_on_offer_decides(header: str | None, form: Form) -> None:
    assert chosen(header) == form


@pytest.mark.parametrize(
    "header", ["image/webp", "text/*", "image/jpeg;q=0", "*/*;q=0", 'multipart/related; type="a/b"']
)
def test_nothing_on_offer_is_told_with_what_is(header: str) -> None:
    with pytest.raises(NotAcceptable, match=r'image/jpeg or image/png .* multipart/related; type="image/png"'):
        chosen(header)


@pytest.mark.parametrize(
    "header", ["image", "image/png;q=2", "image/png;q=x", "image/png;q=-1", 'a/b;c="', "é/b", "x" * 5000]
)
def test_a_header_that_cannot_be_read_is_a_bad_request(header: str) -> None:
    with pytest.raises(BadRequest):
        chosen(header)


@pytest.mark.parametrize(
    ("parameter", "header", "form"),
    [
        ("image/png", None, PNG),
        ("image/png", "*/*", PNG),
        ("image/png", "text/html, image/*;q=0.8", PNG),
        ("image/webp", "*/*", JPEG),
        ("image/gif;q=0.1,image/png", "*/*", PNG),
        ('multipart/related; type="image/png"', "*/*", MANY_PNG),
    ],
)
def test_the_accept_parameter_comes_before_the_header(parameter: str, header: str | None, form: Form) -> None:
    assert chosen(header, f"accept={quote(parameter)}") == form


def test_a_parameter_that_the_header_rules_out_is_not_acceptable() -> None:
    with pytest.raises(NotAcceptable, match="in common"):
        chosen("image/jpeg", "accept=image/png")


def test_a_plus_in_the_parameter_is_one() -> None:
    for query in (
        "accept=application/dicom+json",
        "accept=application%2Fdicom%2Bjson",
        "x=1&accept=application/dicom+json",
    ):
        assert accept.must_take_text(request("*/*", query), "application/dicom+json") == "application/dicom+json"
    with pytest.raises(BadRequest):
        chosen("*/*", "accept=%FF")


@pytest.mark.parametrize(
    ("query", "headers", "is_taken"),
    [
        ("", {}, True),
        ("charset=utf-8", {}, True),
        ("charset=%22ISO_IR%20192%22", {}, True),
        ("charset=ISO_IR%20100,utf-8", {}, True),
        ("charset=latin-1", {}, False),
        ("", {"accept_charset": "utf-8, iso-8859-1;q=0.5"}, True),
        ("", {"accept_charset": "iso-8859-1"}, False),
        ("", {"accept_charset": "*"}, True),
    ],
)
def test_text_is_utf8_or_not_sent(query: str, headers: dict[str, str], is_taken: bool) -> None:
    asked = request("*/*", query, **headers)
    if is_taken:
        assert accept.must_take_text(asked, "application/dicom+json")
    else:
        with pytest.raises(NotAcceptable, match="UTF-8"):
            accept.must_take_text(asked, "application/dicom+json")


def test_the_transfer_syntax_stays_with_its_range() -> None:
    header = (
        "multipart/related; type=image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50, "
        'multipart/related; type="image/png; transfer-syntax=*";q=0.5'
    )
    one, two = accept.wanted(request(header))
    assert (one.transfer_syntax, two.transfer_syntax) == ("1.2.840.10008.1.2.4.50", "*")
    assert two.takes(MANY_PNG)


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_header_and_query_gives_a_form_or_a_refusal(header: str, query: str) -> None:
    try:
        form = chosen(header.encode("utf-8").decode("latin-1"), f"accept={quote(query)}")
    except (BadRequest, NotAcceptable):
        return
    assert form in OFFERED

"""Conditional and range requests, clause by clause (RFC 9110)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dicom.conditional import WHOLE, Verdict, decide

TAG = '"abc"'


@pytest.mark.parametrize(
    ("clause", "headers", "status"),
    [
        ("13.1.2 the tag itself", {"if-none-match": TAG}, 304),
        ("13.1.2 compared weakly", {"if-none-match": f"W/{TAG}"}, 304),
        ("13.1.2 in a list", {"if-none-match": f'"x", W/"y",{TAG}'}, 304),
        ("13.1.2 anything", {"if-none-match": "*"}, 304),
        ("13.1.2 another", {"if-none-match": '"abcd"'}, 200),
        ("13.1.2 a comma within a tag", {"if-none-match": '"abc,"'}, 200),
        ("8.8.3 a tag without quotes is none", {"if-none-match": "abc"}, 200),
        ("13.1.1 the tag itself", {"if-match": TAG}, 200),
        ("13.1.1 compared strongly", {"if-match": f"W/{TAG}"}, 412),
        ("13.1.1 another", {"if-match": '"x"'}, 412),
        ("13.2.2 If-Match comes first", {"if-match": '"x"', "if-none-match": TAG}, 412),
        ("13.2.2 If-None-Match before Range", {"if-none-match": TAG, "range": "bytes=0-1"}, 304),
        ("13.1.5 If-Range with the tag", {"range": "bytes=0-1", "if-range": TAG}, 206),
        ("13.1.5 If-Range with another", {"range": "bytes=0-1", "if-range": '"x"'}, 200),
        ("13.1.5 If-Range is compared strongly", {"range": "bytes=0-1", "if-range": f"W/{TAG}"}, 200),
        ("13.1.5 If-Range with a date", {"range": "bytes=0-1", "if-range": "Sat, 29 Oct 1994 19:43:31 GMT"}, 200),
    ],
)
@pytest.mark.ps318("10.4.1.3")
def test_conditions_are_weighed_as_the_clause_says(clause: str, headers: dict[str, str], status: int) -> None:
    assert decide("GET", headers, TAG, 10).status == status, clause


@pytest.mark.parametrize(
    ("header", "verdict"),
    [
        ("bytes=0-0", Verdict(206, 0, 1)),
        ("bytes=2-4", Verdict(206, 2, 5)),
        ("bytes=2-", Verdict(206, 2, 10)),
        ("bytes=2-99", Verdict(206, 2, 10)),
        ("bytes=-3", Verdict(206, 7, 10)),
        ("bytes=-99", Verdict(206, 0, 10)),
        ("BYTES=9-9", Verdict(206, 9, 10)),
        ("bytes=10-", Verdict(416)),
        ("bytes=10-12", Verdict(416)),
        ("bytes=-0", Verdict(416)),
        ("bytes=4-2", WHOLE),
        ("bytes=0-1,4-5", WHOLE),
        ("bytes=a-b", WHOLE),
        ("bytes=", WHOLE),
        ("bytes=-", WHOLE),
        ("lines=0-1", WHOLE),
        ("bytes=0-1x", WHOLE),
    ],
)
def test_one_range_is_cut_out_and_what_is_no_range_is_ignored(header: str, verdict: Verdict) -> None:
    assert decide("GET", {"range": header}, TAG, 10) == verdict


def test_a_head_and_a_body_of_unknown_length_have_no_ranges() -> None:
    assert decide("HEAD", {"range": "bytes=0-1"}, TAG, 10) == WHOLE
    assert decide("GET", {"range": "bytes=0-1"}, TAG) == WHOLE
    assert decide("HEAD", {"if-none-match": TAG}, TAG).status == 304


def test_what_was_cut_out_is_told_and_so_is_what_could_not_be() -> None:
    assert decide("GET", {"range": "bytes=-3"}, TAG, 10).content_range(10) == "bytes 7-9/10"
    assert decide("GET", {"range": "bytes=10-"}, TAG, 10).content_range(10) == "bytes */10"
    assert decide("GET", {"range": "bytes=0-"}, TAG, 0).status == 416


@given(st.text(max_size=40), st.text(max_size=40), st.integers(0, 50))
def test_no_header_breaks_the_decision_or_leaves_the_body(header: str, tags: str, length: int) -> None:
    verdict = decide("GET", {"range": f"bytes={header}", "if-none-match": tags}, TAG, length)
    assert verdict.status in {200, 206, 304, 416}
    assert 0 <= verdict.start <= verdict.stop <= length

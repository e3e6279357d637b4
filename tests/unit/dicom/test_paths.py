"""The closed route table: one spelling per target, everything else refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dicom.paths import Target, allowed, is_root, parse
from app.errors import BadRequest, MethodNotAllowed, NotSupported

uids = st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,6}){0,7}", fullmatch=True)


@given(uids, uids, uids, st.lists(st.integers(1, 999999), min_size=1, max_size=20))
@pytest.mark.ps318("8.2")
def test_an_address_and_its_target_are_one(study: str, series: str, instance: str, frames: list[int]) -> None:
    whole = Target("retrieve", "instance", study, series, instance)
    assert parse("GET", whole.path().encode()) == whole
    assert parse("GET", f"/studies/{study}/series".encode()) == Target("search", "series", study)
    numbers = ",".join(map(str, frames))
    target = parse("GET", f"{whole.path()}/frames/{numbers}".encode())
    assert (target.resource, target.frames, target.path()) == ("frames", tuple(frames), whole.path())


@given(st.binary(max_size=80))
@pytest.mark.ps318("8.2")
def test_any_bytes_give_a_target_or_a_refusal(raw: bytes) -> None:
    try:
        target = parse("GET", b"/studies/" + raw)
    except (BadRequest, NotSupported):
        return
    assert (b"/studies/" + raw).startswith(target.path().encode())


@given(uids, st.sampled_from(list("%\\;?#@ :&=+*'\"\0\n\r\tåÄ１")), st.integers(0, 40))
def test_one_foreign_character_anywhere_is_refused(study: str, character: str, at: int) -> None:
    path = f"/studies/{study}/metadata"
    at = min(at, len(path))
    with pytest.raises(BadRequest):
        parse("GET", (path[:at] + character + path[at:]).encode())


@pytest.mark.parametrize(
    "path",
    ["", "/", "studies", "//studies", "/studies/", "/studies//series", "/studies/1.2/", "/studies/.", "/studies/..",
     "/studies/1.2/../1.3", "/studies/1.2.", "/studies/.1.2", "/studies/1..2", "/studies/1.2/series/..", "/studies/a",
     "/studies/" + "1" * 65, "/studies/1.2/series/x", "/studies/1/series/2/instances/3/frames/0",
     "/studies/1/series/2/instances/3/bulkdata/7FE00010/1"],
)  # fmt: skip
def test_what_no_address_looks_like_is_a_bad_request(path: str) -> None:
    with pytest.raises(BadRequest):
        parse("GET", path.encode())


@pytest.mark.parametrize(
    "path",
    ["/patients", "/studies/1/frames/1", "/studies/1/series/2/frames/1", "/studies/1/series/2/instances/3/tags",
     "/studies/1/series/2/series", "/studies/1/metadata/x", "/instances/1", "/series/1", "/studies/1/bulkdata/7FE00010",
     "/studies/1/series/2/pixeldata/1",
     "/studies/1/series/2/instances/3/frames/1,2/rendered", "/studies/1/series/2/instances/3/frames/1/x",
     "/Studies/1", "/studies/1/series/2/instances/3/frames/1/pixeldata"],
)  # fmt: skip
@pytest.mark.ps318("8.2")
def test_what_is_not_in_the_table_is_not_there(path: str) -> None:
    with pytest.raises(NotSupported):
        parse("GET", path.encode())


def test_only_studies_take_a_post() -> None:
    assert parse("POST", b"/studies") == Target("store", "study")
    assert parse("POST", b"/studies/1.2") == Target("store", "study", "1.2")
    for path in (b"/series", b"/studies/1.2/series", b"/studies/1.2/metadata"):
        with pytest.raises(MethodNotAllowed):
            parse("POST", path)


@pytest.mark.parametrize("level", ["/studies/1", "/studies/1/series/2", "/studies/1/series/2/instances/3"])
def test_pixel_data_and_bulk_data_are_also_asked_for_as_a_whole(level: str) -> None:
    for name in ("pixeldata", "bulkdata"):
        target = parse("GET", f"{level}/{name}".encode())
        assert (target.resource, target.path(), target.element) == (name, level, ())


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "PURGE"])
def test_another_method_is_told_the_ones_there_are(method: str) -> None:
    for path, allow in ((b"/studies", "GET, HEAD, OPTIONS, POST"), (b"/studies/1/metadata", "GET, HEAD, OPTIONS")):
        with pytest.raises(MethodNotAllowed) as caught:
            parse(method, path)
        assert caught.value.allow == allow
    with pytest.raises(NotSupported):
        parse(method, b"/patients")


def test_a_head_is_asked_as_its_get() -> None:
    assert parse("HEAD", b"/studies/1/metadata") == parse("GET", b"/studies/1/metadata")


def test_the_service_itself_is_no_target_but_is_allowed_to_be_asked() -> None:
    assert is_root(b"")
    assert is_root(b"/")
    assert not is_root(b"/studies")
    assert allowed(b"/") == ("GET", "HEAD", "OPTIONS")
    assert "POST" in allowed(b"/studies/1.2")
    assert "POST" not in allowed(b"/studies/1.2/series")
    with pytest.raises(NotSupported):
        allowed(b"/patients")


def test_bulk_data_is_addressed_by_tags_and_items() -> None:
    target = parse("GET", b"/studies/1/series/2/instances/3/bulkdata/00400555/2/7fe00010")
    assert target.element == ("00400555", "2", "7FE00010")

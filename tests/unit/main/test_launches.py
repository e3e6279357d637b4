"""Bodies of POST /launches that no program should send."""

from __future__ import annotations

import pytest

from app.errors import BadRequest
from app.main import launches


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[" * 50_000, b'{"accession":"\\ud800"}', b'{"\\udc00":1}', b'{"a":"\\u0000"}']
)
def test_a_body_that_cannot_be_text_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        launches.object_of(body)


def test_a_body_of_any_language_is_read() -> None:
    assert launches.object_of('{"accession":"A\\u00e4 山"}'.encode()) == {"accession": "Aä 山"}

"""HL7's examples come in whole and lie in the store byte for byte."""

from __future__ import annotations

import msgspec
import pytest

from app.fhir import parsing, resources, validation
from app.fhir.registry import offers
from tests.fhir_examples import FAULTY, examples, kind_of, kinds

Tree = dict[str, msgspec.Raw]
_TREE = msgspec.json.Decoder(Tree)


def of_kind(kind: str) -> dict[str, bytes]:
    return {name: body for name, body in examples().items() if kind_of(name) == kind}


def elements(body: bytes) -> dict[str, bytes]:
    """The bytes of each top-level element, and of each element of meta, but for what the server gives."""
    tree = _TREE.decode(body)
    meta = _TREE.decode(tree.pop("meta", msgspec.Raw(b"{}")))
    tree.pop("id", None)
    given = {"versionId", "lastUpdated"}
    return {name: bytes(raw) for name, raw in tree.items()} | {
        f"meta.{name}": bytes(raw) for name, raw in meta.items() if name not in given
    }


def test_there_are_examples_of_every_type_that_clients_may_write() -> None:
    # HL7 gives no example of Parameters, whose faults the defects show.
    written = {name for name, offer in offers().items() if "create" in offer.interactions}
    assert written <= {*kinds()}
    assert FAULTY.keys() <= examples().keys()


@pytest.mark.parametrize("kind", kinds())
def test_the_examples_of_hl7_are_valid_but_for_their_known_faults(kind: str) -> None:
    judged = {name: validation.judge(body, kind)[1] for name, body in of_kind(kind).items()}
    faults = {name: [(issue.code, issue.expression) for issue in issues] for name, issues in judged.items() if issues}
    assert faults == {name: found for name, found in FAULTY.items() if kind_of(name) == kind}


@pytest.mark.parametrize("kind", kinds())
def test_the_quick_reader_and_the_slow_one_read_the_same(kind: str) -> None:
    for name, body in of_kind(kind).items():
        assert repr(parsing.parse(body)) == repr(parsing.read_slowly(body)), name


@pytest.mark.parametrize("kind", sorted(set(kinds()) & offers().keys()))
def test_an_accepted_example_is_stored_byte_for_byte_but_for_id_and_meta(kind: str) -> None:
    for name, body in of_kind(kind).items():
        if name not in FAULTY:
            draft = resources.accepted(kind, body)
            stored = resources.created(kind, draft, cause="test").new
            assert elements(stored.body) == elements(body), name

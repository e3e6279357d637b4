"""One text for all queries that differ in their values alone."""

from __future__ import annotations

import pytest

from app.store import plan
from app.store.query import Below, Clause, Condition, Date, Ids, Key, Link, Number, Owner, Query, Target, Text, Token

ENGINE = plan.Engine(True, lambda _: False)


def asked(*conditions: Condition, order: tuple[Key, ...] = (Key(),)) -> Query:
    return Query("A", tuple(Clause((one,)) for one in conditions), order=order, natural="when")


PAIRS: list[tuple[Condition, Condition]] = [
    (Token("code", "s", "X"), Token("code", "t", "Y")),
    (Token("code", None, "X"), Token("code", None, "Y")),
    (Target("patient", "Patient", "1"), Target("patient", "Patient", "2")),
    (Owner("1"), Owner("2")),
    (Ids(frozenset("12")), Ids(frozenset("34"))),
    (Date("when", "ge", 1, 2), Date("when", "ge", 3, 4)),
    (Number("size", "eq", 1, 0.5, 1.5, "u", "mm"), Number("size", "eq", 2, 1.5, 2.5, "v", "cm")),
    (Text("name", "starts", "a"), Text("name", "starts", "b")),
    (Below("source", "http://a"), Below("source", "http://b/")),
    (
        Link("of", Query("B", (Clause((Token("code", "s", "X"),)),))),
        Link("of", Query("B", (Clause((Token("code", "s", "Y"),)),))),
    ),
]


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda condition: type(condition).__name__)
def test_queries_that_differ_in_their_values_have_one_text(one: Condition, other: Condition) -> None:
    first, second = (plan.page(asked(condition), 50, None, ENGINE) for condition in (one, other))
    assert first.text == second.text
    assert first.values != second.values
    assert first.text.count("?") == len(first.values) == len(second.values)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Token("code", "s", "X"), Token("code", None, "X")),
        (Token("code", "s", "X"), Token("code", "s", None)),
        (Text("name", "starts", "a"), Text("name", "starts", "")),
        (Text("name", "starts", "a"), Text("name", "starts", "\U0010ffff")),
        (Date("when", "ge", 1, 2), Date("when", "le", 1, 2)),
        (Ids(frozenset("1")), Ids(frozenset("12"))),
    ],
)
def test_queries_of_another_shape_are_planned_apart(one: Condition, other: Condition) -> None:
    first, second = (plan.page(asked(condition), 50, None, ENGINE) for condition in (one, other))
    assert first.text != second.text


def test_the_bounds_of_a_date_are_those_of_each_query() -> None:
    day = 86_400_000
    for lo in (0, 10 * day):
        found = plan.page(asked(Date("when", "eq", lo, lo + day)), 50, None, ENGINE)
        assert {lo, lo + day} <= set(found.values)


def test_a_place_without_a_value_is_another_shape() -> None:
    order = (Key("name", "string", False),)
    places = [("a", 1), ("b", 2), (None, 3)]
    texts = [plan.page(asked(order=order), 50, place, ENGINE).text for place in places]
    assert texts[0] == texts[1] != texts[2]


def test_counts_share_a_text_of_their_own() -> None:
    counts = [plan.count(asked(Token("code", "s", code)), ENGINE) for code in "XY"]
    assert counts[0].text == counts[1].text != plan.page(asked(Token("code", "s", "X")), 50, None, ENGINE).text
    assert "X" in counts[0].values
    assert "Y" in counts[1].values


def test_whether_dates_are_apart_is_asked_for_every_query() -> None:
    query = asked(Token("code", "s", "X"), Date("when", "ge", 1, 2))
    plain = plan.page(query, 50, None, ENGINE)
    assert plan.page(query, 50, None, plan.Engine(True, lambda _: True)).text != plain.text
    assert plan.page(query, 50, None, ENGINE) == plain

"""Random searches find what a plain second reading of R4's rules finds, in the order asked for, on every page."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from datetime import UTC
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from app.fhir import site
from tests.contract import oracle
from tests.contract.conftest import Server
from tests.contract.oracle import Oracle, escape
from tests.contract.population import KINDS, Population, examples

Json = dict[str, Any]
Criterion = tuple[str, str]

SEARCHES = int(os.environ.get("ISOCENTER_TEST_SEARCHES", "150"))
"""For each engine; with another number, every run makes other resources and other searches."""
FIXED = "ISOCENTER_TEST_SEARCHES" not in os.environ
SEED = 7 if FIXED else int.from_bytes(os.urandom(2))
SORTABLE = {"date", "string", "token", "number"}
ANY = {"date", "string", "reference", "token", "number", "quantity", "uri", "composite"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def settled(server: Server) -> Iterator[None]:
    """The process knows its own address, as a served one does."""
    before = site.here()
    site.settle(server.settings.fhir_base, UTC)
    yield
    site.settle(before.base, before.zone)


class Searches:
    """Draws searches that have a chance to find something: from the values that are there."""

    def __init__(self, known: Oracle, offered: dict[str, set[str]], data: st.DataObject) -> None:
        self.oracle, self.offered, self.data = known, offered, data

    def draw(self, *choices: Any) -> Any:
        return self.data.draw(st.sampled_from(choices))

    def likely(self, percent: int) -> bool:
        return self.data.draw(st.integers(1, 100)) <= percent

    def named(self, kind: str, types: set[str] = ANY) -> list[str]:
        """Offered parameters of a type that some resource has a value for."""
        facts = oracle.parameters(kind)
        names = self.oracle.named(kind)
        return [name for name in names if name in self.offered[kind] and facts[name]["type"] in types]

    def criterion(self, kind: str, depth: int = 0) -> Criterion:
        if depth < 3 and self.likely(20):
            found = self.chain(kind, depth) if self.likely(60) else self.reversed(kind, depth)
            if found:
                return found
        name = self.draw(*self.named(kind))
        facts = oracle.parameters(kind)[name]
        if facts["type"] != "composite" and not name.startswith("_") and self.likely(8):
            return f"{name}:missing", self.draw("true", "false")
        held = [value for one in self.oracle.of(kind) for value in self.oracle.held(one, name)]
        modifier, texts = "", list[str]()
        for value in [self.draw(*held) for _ in range(self.draw(1, 1, 1, 2))]:
            modifier, text = self.asked(kind, name, value, modifier if texts else None)
            texts.append(text)
        return name + (f":{modifier}" if modifier else ""), ",".join(texts)

    def chain(self, kind: str, depth: int) -> Criterion | None:
        """A reference that leads to something here, and a criterion of that."""
        name = self.draw(*self.named(kind, {"reference"}) or [""])
        goals = {
            self.oracle.resources[local]["resourceType"]
            for one in self.oracle.of(kind)
            for value in (self.oracle.held(one, name) if name else [])
            if (local := self.oracle.local(value)) in self.oracle.resources
        } & set(KINDS)
        if not goals:
            return None
        goal = self.draw(*sorted(goals))
        word, text = self.criterion(goal, depth + 1)
        if word.startswith("_has:") or self.likely(50):
            return f"{name}:{goal}.{word}", text
        inner = re.split(r"[.:]", word)[0]
        possible = oracle.parameters(kind)[name].get("target", [])
        types = {oracle.parameters(one)[inner]["type"] for one in possible if inner in oracle.parameters(one)}
        # A name that means different things in the types it may lead to needs the type.
        return (f"{name}.{word}" if len(types) == 1 else f"{name}:{goal}.{word}"), text

    def reversed(self, kind: str, depth: int) -> Criterion | None:
        ways = [
            (other, name)
            for other in KINDS
            for name in self.named(other, {"reference"})
            if kind in oracle.parameters(other)[name].get("target", [])
        ]
        if not ways:
            return None
        other, name = self.draw(*ways)
        word, text = self.criterion(other, depth + 1)
        return f"_has:{other}:{name}:{word}", text

    def asked(self, kind: str, name: str, value: Any, fixed: str | None) -> tuple[str, str]:
        """A modifier (or the one already chosen) and a text that asks for a value, or for one near it."""
        facts = oracle.parameters(kind)[name]
        match facts["type"]:
            case "token":
                return self.token(name, value, fixed)
            case "string":
                return self.string(value, fixed)
            case "date":
                return "", self.date(value)
            case "reference":
                return self.reference(value, fixed)
            case "uri":
                return ("below", escape(value[: value.rfind("/")])) if fixed == "below" or (
                    fixed is None and value.count("/") > 3 and self.likely(30)
                ) else ("", escape(value))  # fmt: skip
            case "composite":
                return "", self.composite(kind, name)
            case "number":
                return "", self.number(value)
            case _:
                return "", self.quantity(value)

    def token(self, name: str, value: Any, fixed: str | None) -> tuple[str, str]:
        shown, found = oracle.displays(value), [pair for pair in oracle.codes(value) if pair[1]]
        choices = [""] if name == "_id" else ["", "", "", "not"] + (["text"] if shown and "coding" in value else [])
        modifier = self.draw(*choices) if fixed is None else fixed
        if modifier == "text":
            return modifier, escape((shown or ["x"])[0][: self.draw(2, 5, 99)])
        if not found:
            return modifier, "nothing"
        system, code = self.draw(*found)
        plain = isinstance(value, str | bool) or name in {"telecom", "phone", "email"}
        forms = [escape(code)]
        if not plain:
            forms += [f"{escape(system)}|{escape(code)}", f"{escape(system)}|"] if system else [f"|{escape(code)}"]
            forms.append(f"urn:other|{escape(code)}")
        return modifier, self.draw(*forms)

    def string(self, value: Any, fixed: str | None) -> tuple[str, str]:
        modifier = self.draw("", "", "exact", "contains") if fixed is None else fixed
        whole = self.draw(*oracle.strings(value) or ["nobody"])
        if modifier == "exact":
            return modifier, escape(self.draw(whole, whole, whole.upper()))
        start = self.draw(0, 1, 2) if modifier == "contains" else 0
        text = whole[start:][: self.draw(1, 2, 3, 50)].strip() or whole
        return modifier, escape(self.draw(text, text.upper(), text.lower(), oracle.fold(text)))

    def date(self, value: Any) -> str:
        given = (
            [value]
            if isinstance(value, str)
            else [value[one] for one in ("start", "end") if one in value] + value.get("event", [])
        )
        whole = self.draw(*given or ["2024"])
        near = self.draw(whole, whole[:4], whole[:7], whole[:10], "2024-03-01T10:00Z", "2024-03-01", "2024-02")
        return self.draw("", "eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap") + near

    def reference(self, value: Any, fixed: str | None) -> tuple[str, str]:
        local = self.oracle.local(value)
        if fixed is None and isinstance(value, dict) and "identifier" in value and self.likely(50):
            fixed = "identifier"
        if fixed == "identifier":
            held = value.get("identifier", {}) if isinstance(value, dict) else {}
            return fixed, self.draw(
                escape(held.get("value", "1")), f"{escape(held.get('system', ''))}|{escape(held.get('value', '1'))}"
            )
        if local is None:
            whole = value.get("reference", "urn:x") if isinstance(value, dict) else value
            return "", escape(whole if ":" in whole else "none")
        kind, _, identity = local.partition("/")
        if fixed is None and kind in KINDS and self.likely(20):
            return kind, identity
        if fixed:
            return fixed, identity
        return "", self.draw(local, identity, f"{self.oracle.base}/{local}")

    def number(self, value: Any) -> str:
        # What an exponent says of precision is told by an example that contradicts itself.
        exact = f"{Decimal(str(value)):f}"
        near = self.draw(
            exact if len(exact) < 25 else "1", str(round(value) % 10**9), f"{value + 1:f}"[:25], f"{value:.2f}"[:25]
        )
        return self.draw("", "eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap") + near

    def quantity(self, value: Any) -> str:
        if not isinstance(value, dict) or "value" not in value:
            return "5.4"
        asked, code = self.number(value["value"]), value.get("code") or value.get("unit")
        forms = [asked]
        if code:
            forms += [f"{asked}||{escape(code)}", f"{asked}|{escape(value.get('system', ''))}|{escape(code)}"]
        return self.draw(*forms)

    def composite(self, kind: str, name: str) -> str:
        """Values of two parts from one place, or from two."""
        facts = oracle.parameters(kind)[name]
        places = [place for one in self.oracle.of(kind) for place in self.oracle.held(one, name)]
        texts: list[str] = []
        for component in facts["component"]:
            other = next(known for known, one in oracle.HL7[kind].items() if one["url"] == component["definition"])
            found = []
            for place in places:
                base = "" if place.get("resourceType") else facts["expression"].partition(" ")[0]
                found += oracle.values(place, component["expression"], base)
            if not found:
                texts.append({"date": "2024", "quantity": "1"}.get(oracle.HL7[kind][other]["type"], "a"))
                continue
            value = self.draw(*found)
            text = self.asked(kind, other, value, "")[1]
            texts.append(text if not text.endswith("|") and text != "nothing" else "a")
        return "$".join(texts)


def stored(client: httpx.Client, seed: int, base: str) -> Oracle:
    """Fill the server; know what it holds, as it says itself."""
    offered = declared(client)
    wanted = [
        *Population(seed, base).resources(),
        *(one for one in examples() if "update" in offered.get(one["resourceType"], ())),
    ]
    held: dict[str, Json] = {}
    for resource in wanted:
        name = f"{resource['resourceType']}/{resource['id']}"
        answer = client.put(
            f"/fhir/{name}", content=json.dumps(resource), headers={"Content-Type": "application/fhir+json"}
        )
        assert answer.status_code == 201, (name, answer.text)
        held[name] = client.get(f"/fhir/{name}").json()
    return Oracle(base, held)


def declared(client: httpx.Client) -> dict[str, set[str]]:
    """Interactions and search parameters of each type, as /metadata says."""
    found: dict[str, set[str]] = {}
    for one in client.get("/fhir/metadata").json()["rest"][0]["resource"]:
        interactions = {interaction["code"] for interaction in one["interaction"]}
        found[one["type"]] = interactions | {parameter["name"] for parameter in one.get("searchParam", [])}
    return found


def pages(
    client: httpx.Client, kind: str, asked: Sequence[Criterion], *, by_post: bool
) -> tuple[list[str], list[Json]]:
    """The names of all matches over all pages, in their order, and the Bundles."""
    if by_post:
        bundle = client.post(f"/fhir/{kind}/_search", content=urlencode(asked), headers=FORM)
    else:
        bundle = client.get(f"/fhir/{kind}", params=list(asked))
    names, bundles = list[str](), list[Json]()
    while True:
        assert bundle.status_code == 200, (kind, asked, bundle.text)
        bundles.append(bundle.json())
        for entry in bundles[-1].get("entry", []):
            assert entry["search"]["mode"] == "match"
            names.append(f"{entry['resource']['resourceType']}/{entry['resource']['id']}")
        following = [link["url"] for link in bundles[-1]["link"] if link["relation"] == "next"]
        if not following:
            return names, bundles
        assert len(bundles) < 400, "paging has no end"
        bundle = client.get("/fhir" + following[0].partition("/fhir")[2])


def ordered(known: Oracle, names: Sequence[str], keys: Sequence[tuple[str, bool]]) -> bool:
    """Each neighbour stands where the keys put it; without a value last."""

    def before(first: str, second: str) -> bool:
        for name, descending in keys:
            one, other = (known.key(which, name, descending=descending) for which in (first, second))
            if one == other:
                continue
            if one is None or other is None:
                return other is None
            return (one > other) == descending
        return True

    return all(before(first, second) for first, second in itertools.pairwise(names))


@pytest.mark.usefixtures("settled")
@pytest.mark.timeout(900)
def test_random_searches_find_what_a_second_reading_of_the_rules_finds(server: Server, client: httpx.Client) -> None:
    known = stored(client, SEED, server.settings.fhir_base)
    offered = declared(client)

    @settings(
        max_examples=SEARCHES,
        derandomize=FIXED,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(st.data())
    def agrees(data: st.DataObject) -> None:
        searches = Searches(known, offered, data)
        kind = searches.draw(*KINDS)
        criteria = [searches.criterion(kind) for _ in range(searches.draw(1, 1, 2, 3))]
        controls: list[Criterion] = [("_count", str(searches.draw(1, 3, 5, 50)))]
        keys: list[tuple[str, bool]] = []
        if searches.likely(40):
            keys = [
                (name, searches.draw(True, False))
                for name in dict.fromkeys(searches.draw(*searches.named(kind, SORTABLE)) for _ in "ab")
            ]
            controls.append(("_sort", ",".join("-" * descending + name for name, descending in keys)))
        if searches.likely(30):
            controls.append(("_total", "accurate"))
        asked = [*criteria, *controls]
        note(f"GET {kind}?{urlencode(asked)} (resources of seed {SEED})")
        must, may = known.find(kind, criteria)

        names, bundles = pages(client, kind, asked, by_post=searches.likely(20))

        for name in sorted((must - set(names)) | (set(names) - may)):
            note(json.dumps(known.resources[name], ensure_ascii=False))
        assert len(names) == len(set(names)), "a resource stands on two pages"
        assert must <= set(names), f"not found: {sorted(must - set(names))}"
        assert set(names) <= may, f"found though it does not match: {sorted(set(names) - may)}"
        assert ordered(known, names, keys), names
        if ("_total", "accurate") in controls:
            assert {one["total"] for one in bundles} == {len(names)}

    agrees()


def test_the_second_reading_is_no_yes_man() -> None:
    """It finds some and not all, of every kind of parameter: an oracle that agrees with anything proves nothing."""
    base = "http://localhost:8080/fhir"
    known = Oracle(base, {f"{one['resourceType']}/{one['id']}": one for one in Population(7, base).resources()})
    asked: list[tuple[str, str, str]] = [
        ("Patient", "family", "MU"), ("Patient", "name:exact", "Müller"), ("Patient", "birthdate", "lt2024-02"),
        ("ImagingStudy", "modality", "CT"), ("ImagingStudy", "patient.name:contains", "a"),
        ("Observation", "value-quantity", "gt1"), ("Observation", "code-value-quantity", "8462-4$gt0,24627-2$gt0"),
        ("Patient", "_has:Observation:subject:code", "8867-4"), ("ImagingStudy", "number-of-instances", "gt1"),
        ("Patient", "identifier", "2,c\\,d"), ("Patient", "gender:not", "male"), ("Patient", "_source:below", "http://src.example/a"),
    ]  # fmt: skip
    for kind, word, text in asked:
        must, may = known.find(kind, [(word, text)])
        assert must, (kind, word)
        assert may < set(known.of(kind)), (kind, word)

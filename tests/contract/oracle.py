"""A second reading of R4's search rules, for comparison: slow, plain, and made without the server's own index.

Values come from HL7's search expressions (capability/definitions/search-parameters.json) by fhirpathpy; every resource
is then asked one by one. An answer is true, false, or None where R4 leaves it to the server
(https://hl7.org/fhir/R4/search.html).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import fhirpathpy
from fhirpathpy.models import models

Json = dict[str, Any]
Verdict = bool | None

ROOT = Path(__file__).parents[2]
HL7: dict[str, dict[str, Json]] = json.loads(
    (ROOT / "capability" / "definitions" / "search-parameters.json").read_text("utf-8")
)
OURS: dict[str, dict[str, Json]] = {
    "ImagingStudy": {
        "number-of-instances": {"type": "number", "expression": "ImagingStudy.numberOfInstances"},
        "modality": {"type": "token", "expression": "ImagingStudy.series.modality | ImagingStudy.modality"},
        "description": {"type": "string", "expression": "ImagingStudy.description"},
    },
    "DiagnosticReport": {
        "imaging-study": {
            "type": "reference",
            "expression": "DiagnosticReport.imagingStudy",
            "target": ["ImagingStudy"],
        },
    },
}
"""What docs/fhir.md says this server adds to HL7's parameters."""
SHARED = ("_tag", "_profile", "_source", "_security", "_lastUpdated", "_id")
_OPEN = 2**62
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@cache
def parameters(kind: str) -> dict[str, Json]:
    """Every parameter of a type that has an expression, by name."""
    shared = {name: HL7["Resource"][name] for name in SHARED}
    found = {**HL7.get(kind, {}), **OURS.get(kind, {}), **shared}
    return {name: one for name, one in found.items() if one.get("expression")}


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    seen = list(verdicts)
    return False if False in seen else None if None in seen else True


def any_of(verdicts: Iterable[Verdict]) -> Verdict:
    seen = list(verdicts)
    return True if True in seen else None if None in seen else False


def no(verdict: Verdict) -> Verdict:
    return None if verdict is None else not verdict


# --- values -----------------------------------------------------------------------------------------------------


@cache
def reader(expression: str, base: str = "") -> Callable[[Json], list[Any]]:
    """HL7's expression, spelled so that it needs neither a server nor a single value."""
    text = re.sub(r"\(([\w.]+) as (\w+)\)", r"\1.ofType(\2)", expression)
    text = re.sub(r"\.as\((\w+)\)", r".ofType(\1)", text)
    text = re.sub(
        r"where\(resolve\(\) is (\w+)\)",
        r"where(type = '\1' or reference.matches('^(.*/)?\1/[^/]+(/_history/.+)?$'))",
        text,
    )
    text = re.sub(r"^Resource\.", "", text)
    if base:
        path = {"base": base, "expression": text}
        return lambda place: fhirpathpy.evaluate(place, path, None, models["r4"])
    return fhirpathpy.compile(text, models["r4"])


def values(resource: Json, expression: str, base: str = "") -> list[Any]:
    found: list[Any] = []
    for one in reader(expression, base)(resource):
        found += one if isinstance(one, list) else [one]
    return found


# --- dates ------------------------------------------------------------------------------------------------------

_FORM = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(?:\.(\d+))?)?(Z|[+-]\d\d:\d\d)?)?)?)?"
)  # fmt: skip


def span(text: str) -> tuple[int, int]:
    """First and one past the last millisecond that a date of any precision may mean; without a zone it is in UTC."""
    found = _FORM.fullmatch(text)
    assert found is not None, text
    year, month, day, hour, minute, second, fraction, zone = found.groups()
    start = datetime(
        int(year), int(month or 1), int(day or 1), int(hour or 0), int(minute or 0), int(second or 0), tzinfo=UTC
    )
    if zone and zone != "Z":
        start -= timedelta(hours=int(zone[1:3]), minutes=int(zone[4:6])) * (-1 if zone[0] == "-" else 1)
    lo = (start - _EPOCH) // timedelta(milliseconds=1)
    if fraction:
        lo += int((fraction + "00")[:3])
        return lo, lo + (1 if len(fraction) > 2 else 10 ** (3 - len(fraction)))
    if second:
        return lo, lo + 1000
    if hour:
        return lo, lo + 60_000
    if day:
        return lo, lo + 86_400_000
    follows = datetime(int(year) + (not month or month == "12"), int(month or 12) % 12 + 1, 1, tzinfo=UTC)
    return lo, (follows - _EPOCH) // timedelta(milliseconds=1)


def spans(value: Any) -> list[tuple[int, int]]:
    """The interval of a date, a Period or a Timing; nothing for what is no date."""
    if isinstance(value, str):
        return [span(value)]
    if "event" in value or "repeat" in value:
        period = value.get("repeat", {}).get("boundsPeriod")
        parts = [span(one) for one in value.get("event", [])] + (spans(period) if period else [])
        return [(min(lo for lo, _ in parts), max(hi for _, hi in parts))] if parts else []
    if "start" in value or "end" in value:
        lo = span(value["start"])[0] if "start" in value else -_OPEN
        return [(lo, span(value["end"])[1] if "end" in value else _OPEN)]
    return []


def date(value: Any, text: str) -> Verdict:
    prefix, asked = (text[:2], text[2:]) if text[0].isalpha() else ("eq", text)
    lo, hi = span(asked)
    rules: Mapping[str, Callable[[int, int], Verdict]] = {
        "eq": lambda first, last: lo <= first and last <= hi,
        "ne": lambda first, last: not (lo <= first and last <= hi),
        "gt": lambda first, last: last > hi,
        "lt": lambda first, last: first < lo,
        "ge": lambda first, last: last > hi or (lo <= first and last <= hi),
        "le": lambda first, last: first < lo or (lo <= first and last <= hi),
        "sa": lambda first, last: first >= hi,
        "eb": lambda first, last: last <= lo,
        # How near is near is the server's choice; what overlaps is near.
        "ap": lambda first, last: True if first < hi and last > lo else None,
    }
    return any_of(rules[prefix](first, last) for first, last in spans(value))


# --- numbers ----------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"(eq|ne|gt|lt|ge|le|sa|eb|ap)?([+-]?\d+(?:\.\d+)?)")


def number(value: Any, text: str) -> Verdict:
    found = _NUMBER.fullmatch(text)
    assert found is not None, text
    prefix, exact, held = found[1] or "eq", Decimal(found[2]), Decimal(str(value))
    half = Decimal(5).scaleb(int(exact.as_tuple().exponent) - 1)
    equal = exact - half <= held < exact + half
    match prefix:
        case "eq" | "ne":
            return equal == (prefix == "eq")
        case "gt" | "sa":
            return held > exact
        case "lt" | "eb":
            return held < exact
        case "ge":
            return held >= exact
        case "le":
            return held <= exact
        case _:
            return True if equal else None


def quantity(value: Any, text: str) -> Verdict:
    asked, *unit = parts(text, "|")
    if not isinstance(value, dict) or "value" not in value or "comparator" in value:
        return None
    if unit:
        system, code = (unescape(one) for one in unit)
        if system and value.get("system") != system:
            return False
        if code and code != value.get("code") and (system or code != value.get("unit")):
            return False
    return number(value["value"], asked)


# --- texts, tokens, references ----------------------------------------------------------------------------------


def fold(text: str) -> str:
    """Without case and accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))


def parts(text: str, separator: str) -> list[str]:
    r"""The text between separators without a backslash before them; `\\` is a backslash."""
    return re.findall(rf"(?:^|{re.escape(separator)})((?:\\.|[^{re.escape(separator)}\\])*)", text)


def unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def escape(text: str) -> str:
    return re.sub(r"([\\,|$])", r"\\\1", text)


NAME = ("text", "family", "given", "prefix", "suffix")
ADDRESS = ("text", "line", "city", "district", "state", "postalCode", "country")


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    found: list[str] = []
    for name in {*NAME, *ADDRESS}:
        inner = value.get(name, [])
        found += [inner] if isinstance(inner, str) else inner
    return found


def string(value: Any, text: str, modifier: str = "") -> Verdict:
    asked = unescape(text)
    if modifier == "exact":
        return asked in strings(value)
    wanted = fold(asked)
    return any(
        wanted in fold(one) if modifier == "contains" else fold(one).startswith(wanted) for one in strings(value)
    )


def codes(value: Any) -> list[tuple[str | None, str | None]]:
    """(system, code) of what a token looks into; a plain code's system is in its definition and not asked for here."""
    if isinstance(value, bool):
        return [(None, "true" if value else "false")]
    if isinstance(value, str):
        return [(None, value)]
    if "coding" in value:
        return [pair for coding in value["coding"] for pair in codes(coding)]
    if "value" in value and isinstance(value["value"], str):
        return [(value.get("system"), value["value"])]
    return [(value.get("system"), value.get("code"))] if "code" in value or "system" in value else []


def token(value: Any, text: str) -> Verdict:
    asked = [unescape(one) for one in parts(text, "|")]
    for system, code in codes(value):
        if len(asked) == 1 and code == asked[0]:
            return True
        if len(asked) == 2 and (system or "") == asked[0] and asked[1] in ("", code):
            return True
    return False


def displays(value: Any) -> list[str]:
    """What `:text` looks into."""
    if not isinstance(value, dict):
        return []
    if "type" in value and isinstance(value["type"], dict):
        return [value["type"]["text"]] if "text" in value["type"] else []
    shown = [coding["display"] for coding in value.get("coding", []) if "display" in coding]
    return shown + [value[name] for name in ("text", "display") if name in value]


def of_type(value: Any, text: str) -> Verdict:
    system, code, held = (unescape(one) for one in parts(text, "|"))
    types = value.get("type", {}).get("coding", []) if isinstance(value, dict) else []
    typed = any((one.get("system"), one.get("code")) == (system, code) for one in types)
    return typed and value.get("value") == held


def uri(value: Any, text: str, modifier: str = "") -> Verdict:
    asked = unescape(text)
    if modifier == "below":
        return value == asked or value.startswith(asked.rstrip("/") + "/")
    return value == asked


@dataclass
class Oracle:
    """Knows all that a server holds, and what a search of it must find."""

    base: str
    resources: dict[str, Json]
    """By "Type/id"."""
    known: dict[tuple[str, str], list[Any]] = field(default_factory=dict)
    used: dict[str, list[str]] = field(default_factory=dict)

    def of(self, kind: str) -> list[str]:
        return [name for name, one in self.resources.items() if one["resourceType"] == kind]

    def held(self, name: str, parameter: str) -> list[Any]:
        """A resource's values for a parameter."""
        if (name, parameter) not in self.known:
            resource = self.resources[name]
            expression = parameters(resource["resourceType"])[parameter]["expression"]
            self.known[name, parameter] = values(resource, expression)
        return self.known[name, parameter]

    def named(self, kind: str) -> list[str]:
        """Parameters of a type that some resource has a value for."""
        if kind not in self.used:
            self.used[kind] = [
                name for name in parameters(kind) if any(self.held(resource, name) for resource in self.of(kind))
            ]
        return self.used[kind]

    def local(self, value: Any) -> str | None:
        """ "Type/id" of a reference to this server."""
        text = value.get("reference", "") if isinstance(value, dict) else value
        text = text.removeprefix(f"{self.base}/").partition("/_history/")[0]
        return text if re.fullmatch(r"[A-Za-z]+/[A-Za-z0-9.\-]+", text) else None

    def asks(self, name: str, word: str, text: str) -> Verdict:
        """Whether a resource meets one criterion of a search of its type; a comma in `text` means or."""
        if word.startswith("_has:"):
            _, kind, reference, rest = word.split(":", 3)
            return any_of(
                all_of(
                    [any(self.local(one) == name for one in self.held(other, reference)), self.asks(other, rest, text)]
                )
                for other in self.of(kind)
            )
        head, _, rest = word.partition(".")
        parameter, _, modifier = head.partition(":")
        if rest:
            return any_of(self.chained(one, modifier, rest, text) for one in self.held(name, parameter))
        held = self.held(name, parameter)
        facts = parameters(self.resources[name]["resourceType"])[parameter]
        if modifier == "missing":
            # An element that holds nothing to search by, a mere display: is it there or not?
            there = any_of(True if self.searchable(value, facts["type"]) else None for value in held)
            return there if text == "false" else no(there)
        if facts["type"] == "composite":
            return any_of(self.composite(name, facts, one) for one in parts(text, ","))
        verdict = any_of(self.meets(value, facts["type"], modifier, one) for value in held for one in parts(text, ","))
        return no(verdict) if modifier == "not" else verdict

    def searchable(self, value: Any, kind: str) -> bool:
        match kind:
            case "token":
                return any(code for _, code in codes(value))
            case "reference":
                return isinstance(value, str) or not value.get("reference", "#").startswith("#")
            case "date":
                return bool(spans(value))
            case "string":
                return bool(strings(value))
            case "quantity":
                return isinstance(value, dict) and "value" in value
        return True

    def meets(self, value: Any, kind: str, modifier: str, text: str) -> Verdict:
        match kind, modifier:
            case "token", "text":
                return any(fold(one).startswith(fold(unescape(text))) for one in displays(value))
            case "token", "of-type":
                return of_type(value, text)
            case "token", _:
                return token(value, text)
            case "string", _:
                return string(value, text, modifier)
            case "uri", _:
                return uri(value, text, modifier)
            case "reference", "identifier":
                return token(value.get("identifier", {}) if isinstance(value, dict) else {}, text)
            case "reference", _:
                return self.reference(value, modifier, text)
        return {"date": date, "number": number, "quantity": quantity}[kind](value, text)

    def reference(self, value: Any, kind: str, text: str) -> Verdict:
        asked, local = unescape(text).removeprefix(f"{self.base}/"), self.local(value)
        if kind and "/" not in asked:
            asked = f"{kind}/{asked}"
        if local is None:
            whole = value.get("reference") if isinstance(value, dict) else value
            # Whether a canonical without a version finds one with a version is not said for references.
            return None if whole and "|" in whole and whole.startswith(asked) else asked == whole
        return local == asked or ("/" not in asked and local.partition("/")[2] == asked)

    def chained(self, value: Any, kind: str, rest: str, text: str) -> Verdict:
        name = self.local(value)
        if name not in self.resources or (kind and not name.startswith(f"{kind}/")):
            return False
        first = re.split(r"[.:]", rest)[0]
        has = rest.startswith("_has:") or first in parameters(name.partition("/")[0])
        return self.asks(name, rest, text) if has else False

    def composite(self, name: str, facts: Json, text: str) -> Verdict:
        """Both parts hold in one and the same place."""
        resource, asked = self.resources[name], parts(text, "$")
        verdicts: list[Verdict] = []
        for place in values(resource, facts["expression"]):
            base = "" if place.get("resourceType") else facts["expression"].partition(" ")[0]
            both: list[Verdict] = []
            for component, one in zip(facts["component"], asked, strict=True):
                kind = next(
                    other["type"]
                    for other in HL7[resource["resourceType"]].values()
                    if other["url"] == component["definition"]
                )
                there = values(place, component["expression"], base)
                both.append(any_of(self.meets(value, kind, "", one) for value in there))
            verdicts.append(all_of(both))
        return any_of(verdicts)

    def find(self, kind: str, criteria: Iterable[tuple[str, str]]) -> tuple[set[str], set[str]]:
        """Names of the resources that must be found, and of those that may be."""
        asked = list(criteria)
        verdicts = {name: all_of(self.asks(name, word, text) for word, text in asked) for name in self.of(kind)}
        must = {name for name, verdict in verdicts.items() if verdict}
        return must, must | {name for name, verdict in verdicts.items() if verdict is None}

    def key(self, name: str, parameter: str, *, descending: bool) -> Any:
        """What a resource is ordered by; None without a value, which comes last."""
        facts = parameters(self.resources[name]["resourceType"])[parameter]
        found: list[Any] = []
        for value in self.held(name, parameter):
            match facts["type"]:
                case "date":
                    # A period without a start is as good as undated.
                    found += [lo for lo, _ in spans(value) if lo > -_OPEN]
                case "string":
                    found += [fold(one) for one in strings(value)]
                case "token":
                    found += [code for _, code in codes(value) if code is not None]
                case "number":
                    found.append(value)
                case other:
                    raise AssertionError(f"nothing is sorted by a {other} here")
        return (max if descending else min)(found) if found else None

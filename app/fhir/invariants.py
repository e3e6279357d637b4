"""The invariants of R4, hand-compiled from their FHIRPath (https://hl7.org/fhir/R4/conformance-rules.html#constraints).

Rows of RULES are (structure, key): where a fault is shown, and what must hold. The node of a rule may be faulty in any
other way, so rules look at it only through `has`, `text`, `objects` and the like, which never raise.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

Json = dict[str, Any]
Holds = Callable[[Json], bool]

_UCUM = "http://unitsofmeasure.org"
_VERIFICATION = "http://terminology.hl7.org/CodeSystem/allergyintolerance-verification"
_REQUESTING = {"batch", "transaction", "history"}
_RESPONDING = {"batch-response", "transaction-response", "history"}
_BUNDLES = _REQUESTING | _RESPONDING | {"collection", "document", "message", "searchset"}
_SLICE_NAME = re.compile(r"[a-zA-Z0-9/\-_\[\]@]+")
_SYSTEM_TYPE = re.compile(r"http://hl7\.org/fhirpath/System\.[A-Z][A-Za-z]+")
_TYPE_NAME = re.compile(r"[a-zA-Z0-9]+")
_DOTTED_NAME = re.compile(r"[a-zA-Z0-9.]+")
_CODED = frozenset({"code", "Coding", "CodeableConcept", "Quantity", "string", "uri"})
_STEP = r"[^\s.,:;'\"/|?!@#$%&*()\[\]{}]{1,64}"
_ELEMENT_PATH = re.compile(rf"{_STEP}(\.{_STEP}(\[x\])?(:[^\s.]+)?)*")


# --- looking at a node that may be anything --------------------------------------------------------------------


def has(node: Json, name: str) -> bool:
    """Whether the element is there, if only by its extensions; `value[x]` means any type of it."""
    if name.endswith("[x]"):
        stem = name[:-3]
        return any(key.lstrip("_").startswith(stem) and key.lstrip("_")[len(stem) :][:1].isupper() for key in node)
    return name in node or f"_{name}" in node


def text(node: Json, name: str) -> str | None:
    """The element's value if it is text."""
    value = node.get(name)
    return value if type(value) is str else None


def number(node: Json, name: str) -> float | Decimal | None:
    """The element's value if it is a number."""
    value = node.get(name)
    return value if type(value) in {int, float, Decimal} else None


def values(node: Json, name: str) -> list[Any]:
    """The element's values, one or many."""
    value = node.get(name)
    return value if type(value) is list else [] if value is None else [value]


def objects(node: Json, *names: str) -> list[Json]:
    """The objects along a path of names."""
    found = [node]
    for name in names:
        found = [value for item in found for value in values(item, name) if type(value) is dict]
    return found


def listed(node: Json, name: str) -> list[tuple[int, Json]]:
    """The objects in a list, with their indices."""
    return [(index, item) for index, item in enumerate(values(node, name)) if type(item) is dict]


def texts(nodes: Iterable[Json], name: str) -> list[str]:
    """The texts of one element in several nodes."""
    return [value for node in nodes for value in values(node, name) if type(value) is str]


def strings(value: Any) -> Iterator[str]:
    """Every text anywhere inside."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if type(item) is dict:
            waiting.extend(item.values())
        elif type(item) is list:
            waiting.extend(item)
        elif type(item) is str:
            yield item


def distinct(found: Iterable[Any]) -> bool:
    """No value twice."""
    return all(times == 1 for times in Counter(found).values())


def in_order(first: str | None, second: str | None) -> bool:
    """False only when the first date or time lies surely after the second; malformed ones are judged elsewhere."""
    if not first or not second:
        return True
    try:
        if "T" in first and "T" in second:
            return datetime.fromisoformat(first) <= datetime.fromisoformat(second)
        # A date beside a time with zone leaves a day's doubt.
        doubt = ("T" in first) != ("T" in second)
        return _days(first)[0] <= _days(second)[1] + doubt
    except (ValueError, TypeError):
        return True


def _days(value: str) -> tuple[int, int]:
    """The first and the last day of a year, a month or a day, as ordinals."""
    year, month, day = [*(int(part) for part in value.split("T")[0].split("-")), 0, 0][:3]
    last_month = month or 12
    last_day = day or monthrange(year, last_month)[1]
    return date(year, month or 1, day or 1).toordinal(), date(year, last_month, last_day).toordinal()


# --- sentences that many rules share ---------------------------------------------------------------------------


def needs(name: str, *others: str) -> Holds:
    """If the first is there, so are the others."""
    return lambda node: not has(node, name) or all(has(node, other) for other in others)


def not_both(name: str, *others: str) -> Holds:
    """Beside the first none of the others."""
    return lambda node: not has(node, name) or not any(has(node, other) for other in others)


def some(*names: str) -> Holds:
    """At least one of them."""
    return lambda node: any(has(node, name) for name in names)


def exactly_one(*names: str) -> Holds:
    """One of them and no more."""
    return lambda node: sum(has(node, name) for name in names) == 1


def not_negative(name: str) -> Holds:
    """Zero or more."""
    return lambda node: (number(node, name) or 0) >= 0


def distinct_texts(name: str, *path: str) -> Holds:
    """No two of the nodes along the path have the same value."""
    return lambda node: distinct(texts(objects(node, *path), name))


def only_if(name: str, other: str, allowed: Iterable[str]) -> Holds:
    """The first needs the other to be one of the allowed values."""
    permitted = frozenset(allowed)
    return lambda node: not has(node, name) or text(node, other) in permitted


@dataclass(frozen=True, slots=True)
class Each:
    """What must hold of each object in a list; given the node that has it, the indices of those that break it."""

    faults: Callable[[Json], list[int]]

    def __call__(self, node: Json) -> bool:
        """Whether all of them keep it."""
        return not self.faults(node)


def each(name: str, is_kept: Callable[[Json, Json], bool]) -> Each:
    """Asked of each object in the list, beside the node that has the list."""
    return Each(lambda node: [index for index, item in listed(node, name) if not is_kept(item, node)])


def each_distinct(name: str, key: str) -> Each:
    """No two objects in the list have the same text; the later ones break it."""
    return Each(lambda node: repeated((index, text(item, key)) for index, item in listed(node, name)))


def repeated(found: Iterable[tuple[int, Any]]) -> list[int]:
    """The indices of values that came before; None stands for no value."""
    met: set[Any] = set()
    again: list[int] = []
    for index, value in found:
        if value is not None and value in met:
            again.append(index)
        met.add(value)
    return again


@dataclass(frozen=True, slots=True)
class Rule:
    """Where a fault is shown, and what must hold."""

    at: str
    holds: Holds

    def faults(self, node: Json) -> list[tuple[str, int]]:
        """Element and index of each fault in a node for which the rule does not hold; -1 means no index."""
        if isinstance(self.holds, Each):
            return [(self.at, index) for index in self.holds.faults(node)]
        return [(self.at, -1)]


# --- rules that need more than a sentence ----------------------------------------------------------------------


def _contained_without(*path: str) -> Each:
    *parents, name = path
    return each("contained", lambda item, _: not any(has(one, name) for one in objects(item, *parents)))


def _unused_contained(node: Json) -> list[int]:
    contained = listed(node, "contained")
    used = set(strings(node)) if contained else set[str]()
    return [index for index, item in contained if f"#{text(item, 'id')}" not in used and "#" not in strings(item)]


def _is_ucum_quantity(node: Json) -> bool:
    has_code = has(node, "code") or not has(node, "value")
    return has_code and text(node, "system") in {None, _UCUM}


def _is_age(node: Json) -> bool:
    value = number(node, "value")
    return _is_ucum_quantity(node) and (value is None or value > 0)


def _is_count(node: Json) -> bool:
    value = node.get("value")
    return _is_ucum_quantity(node) and text(node, "code") in {None, "1"} and (value is None or type(value) is int)


def _is_duration(node: Json) -> bool:
    return not has(node, "code") or (text(node, "system") == _UCUM and has(node, "value"))


def _is_ordered_range(node: Json) -> bool:
    low = [number(item, "value") for item in objects(node, "low")]
    high = [number(item, "value") for item in objects(node, "high")]
    units = {text(item, "code") or text(item, "unit") for item in objects(node, "low") + objects(node, "high")}
    if len(units) > 1 or not low or not high or low[0] is None or high[0] is None:
        return True
    return low[0] <= high[0]


def _is_ratio(node: Json) -> bool:
    both_or_none = has(node, "numerator") == has(node, "denominator")
    return both_or_none and (has(node, "numerator") or has(node, "extension"))


def _offset_has_event(node: Json) -> bool:
    meals = {"C", "CM", "CD", "CV"} & set(texts([node], "when"))
    return not has(node, "offset") or (has(node, "when") and not meals)


def _trigger_is_complete(node: Json) -> bool:
    kind = text(node, "type") or ""
    needed = {"named-event": "name", "periodic": "timing[x]"}.get(kind, "data" if kind.startswith("data-") else "")
    return not needed or has(node, needed)


def _component_repeats_code(node: Json) -> bool:
    own = objects(node, "code", "coding")
    return any(coding in own for coding in objects(node, "component", "code", "coding"))


def _is_parameter(node: Json) -> bool:
    content = has(node, "value[x]") + has(node, "resource")
    return content == 0 if has(node, "part") else content == 1


def _is_entered_in_error(node: Json) -> bool:
    codings = objects(node, "verificationStatus", "coding")
    return any(text(item, "system") == _VERIFICATION and text(item, "code") == "entered-in-error" for item in codings)


def _entries_have(name: str, kinds: set[str]) -> Each:
    """Of a Bundle of no known type nothing can be asked."""
    return each(
        "entry",
        lambda entry, node: has(entry, name) == (text(node, "type") in kinds) or text(node, "type") not in _BUNDLES,
    )


def _repeated_entries(node: Json) -> list[int]:
    if text(node, "type") == "history":
        return []
    entries = [(index, entry) for index, entry in listed(node, "entry") if has(entry, "fullUrl")]
    versions = [texts(objects(entry, "resource", "meta"), "versionId") for _, entry in entries]
    keys = [(index, (text(entry, "fullUrl"), *own)) for (index, entry), own in zip(entries, versions, strict=True)]
    return repeated(keys)


def _begins_with(kind: str, resource_type: str) -> Holds:
    return lambda node: (
        text(node, "type") != kind
        or resource_type
        in texts(objects(node, "entry")[:1] and objects(objects(node, "entry")[0], "resource"), "resourceType")
    )


def _is_named_document(node: Json) -> bool:
    identifiers = objects(node, "identifier")
    return text(node, "type") != "document" or any(has(one, "system") and has(one, "value") for one in identifiers)


def _all_concepts(node: Json) -> list[Json]:
    concepts, waiting = [], objects(node, "concept")
    while waiting:
        concept = waiting.pop()
        concepts.append(concept)
        waiting.extend(objects(concept, "concept"))
    return concepts


def _capability_is_abstract(node: Json) -> bool:
    return text(node, "kind") != "capability" or (has(node, "software") and not has(node, "implementation"))


def _requirements_name_no_software(node: Json) -> bool:
    return text(node, "kind") != "requirements" or not (has(node, "software") or has(node, "implementation"))


def _documents_are_unique(node: Json) -> bool:
    return distinct((text(item, "profile"), text(item, "mode")) for item in objects(node, "document"))


def _groupings_exist(node: Json) -> bool:
    return set(texts(objects(node, "resource"), "groupingId")) <= set(texts(objects(node, "grouping"), "id"))


def _versions_are_declared(node: Json) -> bool:
    return set(texts(objects(node, "definition", "resource"), "fhirVersion")) <= set(texts([node], "fhirVersion"))


def _min_is_below_max(node: Json) -> bool:
    least, most = number(node, "min"), text(node, "max") or "*"
    return least is None or not most.isdecimal() or least <= int(most[:9])


def _is_max(node: Json) -> bool:
    most = text(node, "max")
    return most is None or most == "*" or (most.isascii() and most.isdecimal())


def _is_address_of_value_set(node: Json) -> bool:
    return (text(node, "valueSet") or "http:").startswith(("http:", "https", "urn:"))


def _is_reference_or_canonical(node: Json) -> bool:
    return text(node, "code") in {"Reference", "canonical"}


def _elements_with(*names: str) -> Each:
    return each("element", lambda item, _: all(has(item, name) for name in names))


def _views(node: Json) -> list[Json]:
    return [*objects(node, "snapshot", "element"), *objects(node, "differential", "element")]


def _is_root(element: Json) -> bool:
    return "." not in (text(element, "path") or ".")


def _no_root_has(*names: str) -> Holds:
    return lambda node: not any(has(item, name) for item in _views(node) if _is_root(item) for name in names)


def _first_path(node: Json, view: str) -> str | None:
    first = objects(node, view, "element")[:1]
    return text(first[0], "path") if first else None


def _is_logical(node: Json) -> bool:
    return text(node, "kind") == "logical"


def _snapshot_is_of_type(node: Json) -> bool:
    return _is_logical(node) or not has(node, "snapshot") or _first_path(node, "snapshot") == text(node, "type")


def _first_has_no_type(view: str) -> Holds:
    """The root of a differential is known by its path, the root of a snapshot by its place."""

    def holds(node: Json) -> bool:
        first = objects(node, view, "element")[:1]
        is_root = bool(first) and (view == "snapshot" or _is_root(first[0]))
        return _is_logical(node) or not is_root or not has(first[0], "type")

    return holds


def _is_of_hl7(node: Json) -> bool:
    return (text(node, "url") or "").startswith("http://hl7.org/fhir/StructureDefinition")


def _uses_types_of_fhir(node: Json) -> bool:
    in_differential = texts(objects(node, "differential", "element", "type"), "code")
    in_snapshot = texts(objects(node, "snapshot", "element", "type"), "code")
    return not _is_of_hl7(node) or (
        all(_SYSTEM_TYPE.fullmatch(code) or _TYPE_NAME.fullmatch(code) for code in in_differential)
        and all(_SYSTEM_TYPE.fullmatch(code) or _DOTTED_NAME.fullmatch(code) for code in in_snapshot)
    )


def _defaults_are_specialized(node: Json) -> bool:
    has_default = any(has(item, "defaultValue[x]") for item in objects(node, "differential", "element"))
    return not has_default or text(node, "derivation") == "specialization"


def _hl7_has_no_defaults(node: Json) -> bool:
    return not _is_of_hl7(node) or not any(has(item, "defaultValue[x]") for item in _views(node))


def _snapshot_paths_begin_alike(node: Json) -> bool:
    first = _first_path(node, "snapshot")
    rest = objects(node, "snapshot", "element")[1:]
    own = _is_logical(node) or not has(node, "snapshot") or first == text(node, "type")
    return own and all((text(item, "path") or "").startswith(f"{first}.") for item in rest)


def _differential_paths_begin_alike(node: Json) -> bool:
    first = _first_path(node, "differential") or ""
    rest = objects(node, "differential", "element")[1:]
    root = first.split(".")[0]
    own = _is_logical(node) or not first or first.startswith(text(node, "type") or "")
    return own and all((text(item, "path") or "").startswith(f"{root}.") for item in rest)


def _bound_element_is_coded(node: Json) -> bool:
    codes = texts(objects(node, "type"), "code")
    return not has(node, "binding") or not codes or not _CODED.isdisjoint(codes)


_STATED: dict[tuple[str, str], tuple[str, Holds]] = {
    # every resource and datatype
    ("DomainResource", "dom-2"): ("contained", _contained_without("contained")),
    ("DomainResource", "dom-3"): ("contained", Each(_unused_contained)),
    ("DomainResource", "dom-4"): (
        "contained",
        each(
            "contained",
            lambda item, _: (
                not any(has(meta, "versionId") or has(meta, "lastUpdated") for meta in objects(item, "meta"))
            ),
        ),
    ),
    ("DomainResource", "dom-5"): ("contained", _contained_without("meta", "security")),
    ("Extension", "ext-1"): ("", exactly_one("extension", "value[x]")),
    ("Attachment", "att-1"): ("contentType", needs("data", "contentType")),
    ("ContactPoint", "cpt-2"): ("system", needs("value", "system")),
    ("Period", "per-1"): ("", lambda node: in_order(text(node, "start"), text(node, "end"))),
    ("Quantity", "qty-3"): ("system", needs("code", "system")),
    ("SimpleQuantity", "sqty-1"): ("comparator", lambda node: not has(node, "comparator")),
    ("Age", "age-1"): ("", _is_age),
    ("Count", "cnt-3"): ("", _is_count),
    ("Distance", "dis-1"): ("", _is_ucum_quantity),
    ("Duration", "drt-1"): ("", _is_duration),
    ("Range", "rng-2"): ("", _is_ordered_range),
    ("Ratio", "rat-1"): ("", _is_ratio),
    ("Timing.repeat", "tim-1"): ("durationUnit", needs("duration", "durationUnit")),
    ("Timing.repeat", "tim-2"): ("periodUnit", needs("period", "periodUnit")),
    ("Timing.repeat", "tim-4"): ("duration", not_negative("duration")),
    ("Timing.repeat", "tim-5"): ("period", not_negative("period")),
    ("Timing.repeat", "tim-6"): ("periodMax", needs("periodMax", "period")),
    ("Timing.repeat", "tim-7"): ("durationMax", needs("durationMax", "duration")),
    ("Timing.repeat", "tim-8"): ("countMax", needs("countMax", "count")),
    ("Timing.repeat", "tim-9"): ("offset", _offset_has_event),
    ("Timing.repeat", "tim-10"): ("timeOfDay", not_both("timeOfDay", "when")),
    ("Expression", "exp-1"): ("", some("expression", "reference")),
    ("DataRequirement.codeFilter", "drq-1"): ("", exactly_one("path", "searchParam")),
    ("DataRequirement.dateFilter", "drq-2"): ("", exactly_one("path", "searchParam")),
    ("TriggerDefinition", "trd-1"): ("", not_both("data", "timing[x]")),
    ("TriggerDefinition", "trd-2"): ("condition", needs("condition", "data")),
    ("TriggerDefinition", "trd-3"): ("", _trigger_is_complete),
    # clinical and administrative
    ("AllergyIntolerance", "ait-1"): (
        "clinicalStatus",
        lambda node: _is_entered_in_error(node) or has(node, "clinicalStatus"),
    ),
    ("AllergyIntolerance", "ait-2"): (
        "clinicalStatus",
        lambda node: not (_is_entered_in_error(node) and has(node, "clinicalStatus")),
    ),
    ("Appointment", "app-2"): ("", lambda node: has(node, "start") == has(node, "end")),
    ("Appointment", "app-3"): (
        "",
        lambda node: (
            (has(node, "start") and has(node, "end")) or text(node, "status") in {"proposed", "cancelled", "waitlist"}
        ),
    ),
    ("Appointment", "app-4"): (
        "cancelationReason",
        only_if("cancelationReason", "status", ("no-show", "cancelled")),
    ),
    ("Appointment.participant", "app-1"): ("", some("type", "actor")),
    ("AuditEvent.entity", "sev-1"): ("", not_both("name", "query")),
    ("Group", "grp-1"): ("member", lambda node: not has(node, "member") or node.get("actual") is True),
    ("Observation", "obs-6"): ("dataAbsentReason", not_both("dataAbsentReason", "value[x]")),
    ("Observation", "obs-7"): ("value", lambda node: not has(node, "value[x]") or not _component_repeats_code(node)),
    ("Observation.referenceRange", "obs-3"): ("", some("low", "high", "text")),
    ("Organization", "org-1"): ("", some("identifier", "name")),
    ("Organization", "org-2"): ("address", each("address", lambda item, _: text(item, "use") != "home")),
    ("Organization", "org-3"): ("telecom", each("telecom", lambda item, _: text(item, "use") != "home")),
    ("Patient.contact", "pat-1"): ("", some("name", "telecom", "address", "organization")),
    ("ServiceRequest", "prr-1"): ("orderDetail", needs("orderDetail", "code")),
    ("Task", "inv-1"): (
        "lastModified",
        lambda node: in_order(text(node, "authoredOn"), text(node, "lastModified")),
    ),
    # exchange
    ("Bundle", "bdl-1"): ("total", only_if("total", "type", ("searchset", "history"))),
    ("Bundle", "bdl-2"): (
        "entry",
        each("entry", lambda entry, node: text(node, "type") == "searchset" or not has(entry, "search")),
    ),
    ("Bundle", "bdl-3"): ("entry", _entries_have("request", _REQUESTING)),
    ("Bundle", "bdl-4"): ("entry", _entries_have("response", _RESPONDING)),
    ("Bundle", "bdl-7"): ("entry", Each(_repeated_entries)),
    ("Bundle", "bdl-9"): ("identifier", _is_named_document),
    ("Bundle", "bdl-10"): (
        "timestamp",
        lambda node: text(node, "type") != "document" or text(node, "timestamp") is not None,
    ),
    ("Bundle", "bdl-11"): ("entry", _begins_with("document", "Composition")),
    ("Bundle", "bdl-12"): ("entry", _begins_with("message", "MessageHeader")),
    ("Bundle.entry", "bdl-5"): ("", some("resource", "request", "response")),
    ("Bundle.entry", "bdl-8"): ("fullUrl", lambda node: "/_history/" not in (text(node, "fullUrl") or "")),
    ("Parameters.parameter", "inv-1"): ("", _is_parameter),
    # conformance and terminology
    ("CapabilityStatement", "cpb-1"): ("", some("rest", "messaging", "document")),
    ("CapabilityStatement", "cpb-2"): ("", some("description", "software", "implementation")),
    ("CapabilityStatement", "cpb-3"): (
        "messaging",
        lambda node: (
            text(node, "kind") == "instance" or not any(has(one, "endpoint") for one in objects(node, "messaging"))
        ),
    ),
    ("CapabilityStatement", "cpb-7"): ("document", _documents_are_unique),
    ("CapabilityStatement", "cpb-14"): (
        "implementation",
        lambda node: text(node, "kind") != "instance" or has(node, "implementation"),
    ),
    ("CapabilityStatement", "cpb-15"): ("kind", _capability_is_abstract),
    ("CapabilityStatement", "cpb-16"): ("kind", _requirements_name_no_software),
    ("CapabilityStatement.rest", "cpb-9"): ("resource", each_distinct("resource", "type")),
    ("CapabilityStatement.rest.resource", "cpb-12"): ("searchParam", each_distinct("searchParam", "name")),
    ("CodeSystem", "csd-1"): ("concept", lambda node: distinct(texts(_all_concepts(node), "code"))),
    ("ConceptMap.group.element.target", "cmd-1"): (
        "comment",
        lambda node: has(node, "comment") or text(node, "equivalence") not in {"narrower", "inexact"},
    ),
    ("ConceptMap.group.unmapped", "cmd-2"): (
        "code",
        lambda node: text(node, "mode") != "fixed" or has(node, "code"),
    ),
    ("ConceptMap.group.unmapped", "cmd-3"): (
        "url",
        lambda node: text(node, "mode") != "other-map" or has(node, "url"),
    ),
    ("ImplementationGuide", "ig-2"): ("definition", _versions_are_declared),
    ("ImplementationGuide.definition", "ig-1"): ("resource", _groupings_exist),
    ("OperationDefinition.parameter", "opd-1"): ("", some("type", "part")),
    ("OperationDefinition.parameter", "opd-2"): ("searchType", only_if("searchType", "type", ("string",))),
    ("OperationDefinition.parameter", "opd-3"): (
        "targetProfile",
        only_if("targetProfile", "type", ("Reference", "canonical")),
    ),
    ("SearchParameter", "spd-1"): ("xpathUsage", needs("xpath", "xpathUsage")),
    ("SearchParameter", "spd-2"): ("chain", only_if("chain", "type", ("reference",))),
    ("ValueSet.compose.include", "vsd-1"): ("", some("valueSet", "system")),
    ("ValueSet.compose.include", "vsd-2"): (
        "system",
        lambda node: has(node, "system") or not (has(node, "concept") or has(node, "filter")),
    ),
    ("ValueSet.compose.include", "vsd-3"): ("", not_both("concept", "filter")),
    ("ValueSet.expansion.contains", "vsd-6"): ("", some("code", "display")),
    ("ValueSet.expansion.contains", "vsd-9"): (
        "code",
        lambda node: has(node, "code") or node.get("abstract") is True,
    ),
    ("ValueSet.expansion.contains", "vsd-10"): ("system", needs("code", "system")),
    ("ElementDefinition", "eld-2"): ("min", _min_is_below_max),
    ("ElementDefinition", "eld-3"): ("max", _is_max),
    ("ElementDefinition", "eld-5"): (
        "contentReference",
        not_both(
            "contentReference",
            *("type", "defaultValue[x]", "fixed[x]", "pattern[x]", "example"),
            *("minValue[x]", "maxValue[x]", "maxLength", "binding"),
        ),
    ),
    ("ElementDefinition", "eld-6"): (
        "fixed",
        lambda node: not has(node, "fixed[x]") or len(objects(node, "type")) <= 1,
    ),
    ("ElementDefinition", "eld-7"): (
        "pattern",
        lambda node: not has(node, "pattern[x]") or len(objects(node, "type")) <= 1,
    ),
    ("ElementDefinition", "eld-8"): ("pattern", not_both("pattern[x]", "fixed[x]")),
    ("ElementDefinition", "eld-11"): ("binding", _bound_element_is_coded),
    ("ElementDefinition", "eld-13"): ("type", each_distinct("type", "code")),
    ("ElementDefinition", "eld-14"): ("constraint", each_distinct("constraint", "key")),
    ("ElementDefinition", "eld-15"): ("meaningWhenMissing", not_both("meaningWhenMissing", "defaultValue[x]")),
    ("ElementDefinition", "eld-16"): (
        "sliceName",
        lambda node: _SLICE_NAME.fullmatch(text(node, "sliceName") or "x") is not None,
    ),
    ("ElementDefinition", "eld-18"): (
        "isModifierReason",
        lambda node: node.get("isModifier") is not True or has(node, "isModifierReason"),
    ),
    ("ElementDefinition", "eld-19"): (
        "path",
        lambda node: _ELEMENT_PATH.fullmatch(text(node, "path") or "x") is not None,
    ),
    ("ElementDefinition", "eld-22"): ("sliceName", needs("sliceIsConstraining", "sliceName")),
    ("ElementDefinition.binding", "eld-12"): ("valueSet", _is_address_of_value_set),
    ("ElementDefinition.slicing", "eld-1"): ("", some("discriminator", "description")),
    ("ElementDefinition.type", "eld-4"): (
        "aggregation",
        lambda node: not has(node, "aggregation") or _is_reference_or_canonical(node),
    ),
    ("ElementDefinition.type", "eld-17"): (
        "targetProfile",
        lambda node: not has(node, "targetProfile") or _is_reference_or_canonical(node),
    ),
    ("StructureDefinition", "sdf-1"): (
        "snapshot",
        lambda node: (
            text(node, "derivation") == "constraint" or distinct(texts(objects(node, "snapshot", "element"), "path"))
        ),
    ),
    ("StructureDefinition", "sdf-4"): (
        "baseDefinition",
        lambda node: node.get("abstract") is True or has(node, "baseDefinition"),
    ),
    ("StructureDefinition", "sdf-5"): (
        "context",
        lambda node: (
            text(node, "type") != "Extension" or text(node, "derivation") == "specialization" or has(node, "context")
        ),
    ),
    ("StructureDefinition", "sdf-6"): ("", some("snapshot", "differential")),
    ("StructureDefinition", "sdf-14"): ("", lambda node: all(has(item, "id") for item in _views(node))),
    ("StructureDefinition", "sdf-16"): ("snapshot", distinct_texts("id", "snapshot", "element")),
    ("StructureDefinition", "sdf-17"): ("differential", distinct_texts("id", "differential", "element")),
    ("StructureDefinition", "sdf-18"): (
        "contextInvariant",
        only_if("contextInvariant", "type", ("Extension",)),
    ),
    ("StructureDefinition", "sdf-23"): (
        "",
        _no_root_has("sliceName"),
    ),
    ("StructureDefinition", "sdf-9"): ("", _no_root_has("label", "code", "requirements")),
    ("StructureDefinition", "sdf-11"): ("snapshot", _snapshot_is_of_type),
    ("StructureDefinition", "sdf-15"): ("snapshot", _first_has_no_type("snapshot")),
    ("StructureDefinition", "sdf-15a"): ("differential", _first_has_no_type("differential")),
    ("StructureDefinition", "sdf-19"): ("", _uses_types_of_fhir),
    ("StructureDefinition", "sdf-21"): ("differential", _defaults_are_specialized),
    ("StructureDefinition", "sdf-22"): ("", _hl7_has_no_defaults),
    ("StructureDefinition.mapping", "sdf-2"): ("", some("name", "uri")),
    ("StructureDefinition.snapshot", "sdf-3"): ("element", _elements_with("definition", "min", "max")),
    ("StructureDefinition.snapshot", "sdf-8b"): ("element", _elements_with("base")),
    ("StructureDefinition.snapshot", "sdf-8"): ("snapshot", _snapshot_paths_begin_alike),
    ("StructureDefinition.snapshot", "sdf-10"): (
        "element",
        each(
            "element",
            lambda item, _: all(has(one, "valueSet") or has(one, "description") for one in objects(item, "binding")),
        ),
    ),
    ("StructureDefinition.differential", "sdf-8a"): ("differential", _differential_paths_begin_alike),
    ("StructureDefinition.differential", "sdf-20"): (
        "element",
        each("element", lambda item, _: not (_is_root(item) and has(item, "slicing"))),
    ),
}

RULES: Mapping[tuple[str, str], Rule] = {key: Rule(*row) for key, row in _STATED.items()}

# The walk itself and the narrative's reader see to these.
CHECKED_ELSEWHERE = frozenset(
    {("Element", "ele-1"), ("Reference", "ref-1"), ("Narrative", "txt-1"), ("Narrative", "txt-2")}
)
# Rules stated of a part that need the whole are asked of the whole.
RAISED: Mapping[tuple[str, str], str] = {
    ("StructureDefinition.snapshot", "sdf-8"): "StructureDefinition",
    ("StructureDefinition.differential", "sdf-8a"): "StructureDefinition",
}

"""The invariants of R4, hand-compiled from their FHIRPath (https://hl7.org/fhir/R4/conformance-rules.html#constraints).

Rows of RULES are (structure, key): where a fault is shown, and what must hold. The node of a rule may be faulty in any
other way, so rules look at it only through `has`, `text`, `objects` and the like, which never raise.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime
from decimal import Decimal
from typing import Any

Json = dict[str, Any]
Holds = Callable[[Json], bool]

_UCUM = "http://unitsofmeasure.org"
_VERIFICATION = "http://terminology.hl7.org/CodeSystem/allergyintolerance-verification"
_REQUESTING = {"batch", "transaction", "history"}
_RESPONDING = {"batch-response", "transaction-response", "history"}
_SLICE_NAME = re.compile(r"[a-zA-Z0-9/\-_\[\]@]+")
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


def never(name: str, value: str, *path: str) -> Holds:
    """No node along the path has this value."""
    return lambda node: value not in texts(objects(node, *path), name)


def only_if(name: str, other: str, allowed: Iterable[str]) -> Holds:
    """The first needs the other to be one of the allowed values."""
    permitted = frozenset(allowed)
    return lambda node: not has(node, name) or text(node, other) in permitted


# --- rules that need more than a sentence ----------------------------------------------------------------------


def _all_contained_are_used(node: Json) -> bool:
    contained = objects(node, "contained")
    if not contained:
        return True
    used = set(strings(node))
    return all(f"#{text(item, 'id')}" in used or "#" in strings(item) for item in contained)


def _no_contained_has(*path: str) -> Holds:
    *parents, name = path
    return lambda node: not any(has(item, name) for item in objects(node, "contained", *parents))


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


def _entries_have(name: str, kinds: set[str]) -> Holds:
    return lambda node: all(has(entry, name) == (text(node, "type") in kinds) for entry in objects(node, "entry"))


def _full_urls_are_unique(node: Json) -> bool:
    entries = [entry for entry in objects(node, "entry") if has(entry, "fullUrl")]
    versions = [texts(objects(entry, "resource", "meta"), "versionId") for entry in entries]
    keys = [(text(entry, "fullUrl"), *version) for entry, version in zip(entries, versions, strict=True)]
    return text(node, "type") == "history" or distinct(keys)


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


def _all_elements(*names: str) -> Holds:
    return lambda node: all(has(item, name) for item in objects(node, "element") for name in names)


def _views(node: Json) -> list[Json]:
    return [*objects(node, "snapshot", "element"), *objects(node, "differential", "element")]


def _roots(elements: list[Json]) -> list[Json]:
    return [item for item in elements if "." not in (text(item, "path") or ".")]


Rule = tuple[str, Holds]

RULES: dict[tuple[str, str], Rule] = {
    # every resource and datatype
    ("DomainResource", "dom-2"): ("contained", _no_contained_has("contained")),
    ("DomainResource", "dom-3"): ("contained", _all_contained_are_used),
    ("DomainResource", "dom-4"): (
        "contained",
        lambda node: _no_contained_has("meta", "versionId")(node) and _no_contained_has("meta", "lastUpdated")(node),
    ),
    ("DomainResource", "dom-5"): ("contained", _no_contained_has("meta", "security")),
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
    ("Organization", "org-2"): ("address", never("use", "home", "address")),
    ("Organization", "org-3"): ("telecom", never("use", "home", "telecom")),
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
        lambda node: text(node, "type") == "searchset" or not any(has(one, "search") for one in objects(node, "entry")),
    ),
    ("Bundle", "bdl-3"): ("entry", _entries_have("request", _REQUESTING)),
    ("Bundle", "bdl-4"): ("entry", _entries_have("response", _RESPONDING)),
    ("Bundle", "bdl-7"): ("entry", _full_urls_are_unique),
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
    ("CapabilityStatement.rest", "cpb-9"): ("resource", distinct_texts("type", "resource")),
    ("CapabilityStatement.rest.resource", "cpb-12"): ("searchParam", distinct_texts("name", "searchParam")),
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
    ("ElementDefinition", "eld-13"): ("type", distinct_texts("code", "type")),
    ("ElementDefinition", "eld-14"): ("constraint", distinct_texts("key", "constraint")),
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
        lambda node: not any(has(item, "sliceName") for item in _roots(_views(node))),
    ),
    ("StructureDefinition.mapping", "sdf-2"): ("", some("name", "uri")),
    ("StructureDefinition.snapshot", "sdf-3"): ("element", _all_elements("definition", "min", "max")),
    ("StructureDefinition.snapshot", "sdf-8b"): ("element", _all_elements("base")),
    ("StructureDefinition.snapshot", "sdf-10"): (
        "element",
        lambda node: all(some("valueSet", "description")(one) for one in objects(node, "element", "binding")),
    ),
    ("StructureDefinition.differential", "sdf-20"): (
        "element",
        lambda node: not any(has(item, "slicing") for item in _roots(objects(node, "element"))),
    ),
}

# The walk itself and the narrative's reader see to these.
CHECKED_ELSEWHERE = frozenset(
    {("Element", "ele-1"), ("Reference", "ref-1"), ("Narrative", "txt-1"), ("Narrative", "txt-2")}
)
# Rules about how a StructureDefinition's author lays out paths and types; nobody sends us profiles to build on.
NOT_CHECKED = frozenset(
    {("ElementDefinition", "eld-11")}
    | {("StructureDefinition", key) for key in ("sdf-9", "sdf-11", "sdf-15", "sdf-15a", "sdf-19", "sdf-21", "sdf-22")}
    | {("StructureDefinition.snapshot", "sdf-8"), ("StructureDefinition.differential", "sdf-8a")}
)

"""The CapabilityStatement, made of what is really served (https://hl7.org/fhir/R4/capabilitystatement.html)."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from app.fhir import conditions, definitions
from app.fhir.mapping import terms
from app.fhir.outcome import MEDIA_TYPE
from app.fhir.registry import INTERACTIONS, SYSTEM_INTERACTIONS, Offer, Parameter, offers, operations
from app.settings import Settings

Json = dict[str, Any]

FHIR_VERSION = "4.0.1"
DATE = "2026-11-22"
"""When what is offered changed last."""
RESOURCE_ID = "isocenter"
READING = frozenset({"read", "vread", "search-type"})
"""What a viewer session may do."""
PATCH_FORMATS = ("application/json-patch+json", MEDIA_TYPE)
_OAUTH = ("authorize", "token", "introspect", "revoke")
_OAUTH_URIS = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"
_SECURITY_SERVICE = "http://terminology.hl7.org/CodeSystem/restful-security-service"


def statement(settings: Settings, *, read_only: bool = False) -> Json:
    """What this server offers at its FHIR base, or in a viewer session."""
    rest: Json = {
        "mode": "server",
        "security": _security(settings),
        "resource": [_resource(offer, read_only) for offer in offers().values()],
    }
    return {
        "resourceType": "CapabilityStatement",
        "id": RESOURCE_ID,
        "url": f"{settings.fhir_base}/metadata",
        "name": "Isocenter",
        **_release(),
        "kind": "instance",
        **_here(settings),
        "fhirVersion": FHIR_VERSION,
        "format": [MEDIA_TYPE, "json"],
        **({} if read_only else {"patchFormat": list(PATCH_FORMATS)}),
        "rest": [rest if read_only else {**rest, **_system()}],
    }


def _here(settings: Settings) -> Json:
    """The software, and where it runs."""
    return {
        "software": {"name": "Isocenter", "version": version("isocenter")},
        "implementation": {"description": "Isocenter: imaging over FHIR", "url": settings.fhir_base},
    }


def terminology(settings: Settings) -> Json:
    """What this server offers of terminology: nothing."""
    return {"resourceType": "TerminologyCapabilities", **_release(), "kind": "instance", **_here(settings)}


def modifiers(parameter: Parameter) -> tuple[str, ...]:
    """The modifiers a parameter takes; a reference also takes each type served here that it may point to."""
    kinds = conditions.targets(parameter) & offers().keys() if parameter.type == "reference" else set[str]()
    return (*conditions.modifiers(parameter), *sorted(kinds))


def common() -> Iterator[tuple[str, Json]]:
    """HL7's rows of the parameters that every type takes, by their name."""
    known = definitions.read("search-parameters.json")["Resource"]
    shared = next(iter(offers().values())).search.keys()
    yield from ((name, known[name]) for name in sorted(known) if name in shared or name in {"_id", "_lastUpdated"})


def includes(offer: Offer) -> list[str]:
    """What `_include` takes for this type; what is kept elsewhere is not joined to other rows."""
    names = sorted(name for name, one in offer.search.items() if one.type == "reference" and not offer.kept)
    return ["*", *(f"{offer.resource_type}:{name}" for name in names)] if names else []


def rev_includes(offer: Offer) -> list[str]:
    """What `_revinclude` takes that may lead here."""
    found = [
        f"{other.resource_type}:{name}"
        for other in offers().values()
        for name, parameter in sorted(other.search.items())
        if parameter.type == "reference" and not other.kept and offer.resource_type in conditions.targets(parameter)
    ]
    return ["*", *found] if found and not offer.kept else []


def _release() -> Json:
    return {"status": "active", "date": DATE}


def _security(settings: Settings) -> Json:
    uris = [{"url": name, "valueUri": f"{settings.public_url}/auth/{name}"} for name in _OAUTH]
    service = {"coding": [{"system": _SECURITY_SERVICE, "code": "SMART-on-FHIR"}], "text": "SMART App Launch 2.2"}
    return {"extension": [{"url": _OAUTH_URIS, "extension": uris}], "cors": True, "service": [service]}


def _system() -> Json:
    """What is offered at the base itself."""
    into = definitions.read("compartments.json")
    return {
        "interaction": [{"code": code} for code in SYSTEM_INTERACTIONS],
        "searchParam": [{"name": name, "definition": row["url"], "type": row["type"]} for name, row in common()],
        "compartment": [into[name]["url"] for name in sorted(into) if name in offers()],
        "operation": [{"name": name, "definition": operation_url(name)} for name in operations()],
    }


def operation_url(name: str) -> str:
    """The canonical address of an operation of ours."""
    return f"{terms.BASE}/OperationDefinition/{name}"


def _resource(offer: Offer, read_only: bool) -> Json:
    served = offer.interactions & READING if read_only else offer.interactions
    found: Json = {
        "type": offer.resource_type,
        "profile": f"http://hl7.org/fhir/StructureDefinition/{offer.resource_type}",
        "documentation": _documentation(offer, served),
        "interaction": [{"code": code} for code in INTERACTIONS if code in served],
        "versioning": "no-version" if offer.kept else "versioned-update" if "update" in served else "versioned",
        "readHistory": "vread" in served,
        **_conditions(served),
        "referencePolicy": ["literal", "logical"],
        **(_search(offer) if "search-type" in served else {}),
    }
    return {name: value for name, value in found.items() if value != ""}


def _conditions(served: frozenset[str]) -> Json:
    """The conditional forms: each interaction that is served has its own."""
    return {
        **({"updateCreate": True} if "update" in served else {}),
        **({"conditionalCreate": True} if "create" in served else {}),
        "conditionalRead": "full-support",
        **({"conditionalUpdate": True} if "update" in served else {}),
        **({"conditionalDelete": "single"} if "delete" in served else {}),
    }


def _documentation(offer: Offer, served: frozenset[str]) -> str:
    """What clients cannot read out of the other elements."""
    parts: list[str] = []
    if "create" in offer.interactions and "create" in served and offer.protected:
        names = ", ".join(sorted(offer.protected))
        parts.append(f"Where the server made the resource, clients cannot change {names}.")
    aliases = [f"{alias} for {name}" for alias, name in sorted(offer.aliases.items()) if not name.startswith("_")]
    if aliases:
        parts.append(f"Search also takes {', '.join(aliases)}.")
    return " ".join(parts)


def _search(offer: Offer) -> Json:
    rows = [_parameter(offer, parameter) for parameter in offer.search.values()]
    rows += [
        {"name": name, "definition": row["url"], "type": row["type"]}
        for name, row in common()
        if name not in offer.search
    ]
    found = {
        "searchInclude": includes(offer),
        "searchRevInclude": rev_includes(offer),
        "searchParam": sorted(rows, key=lambda row: row["name"]),
    }
    return {name: value for name, value in found.items() if value}


def _parameter(offer: Offer, parameter: Parameter) -> Json:
    row = {"name": parameter.name, "definition": parameter.url, "type": parameter.type}
    told: list[str] = []
    taken = [f":{name}" for name in conditions.modifiers(parameter)]
    if parameter.type == "reference":
        taken.append(":[type]")
    if taken:
        told.append(f"Modifiers: {' '.join(taken)}")
    known = definitions.read("search-parameters.json").get(offer.resource_type, {}).get(parameter.name)
    if known and known["expression"] != parameter.expression:
        told.append(f"Looks at {parameter.expression}")
    return {**row, "documentation": ". ".join(told)} if told else row

"""The CapabilityStatement, made of what is really served (https://hl7.org/fhir/R4/capabilitystatement.html)."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from app.fhir import definitions
from app.fhir.outcome import MEDIA_TYPE
from app.fhir.registry import INTERACTIONS, Offer, offers
from app.fhir.search import COMMON
from app.settings import Settings

Json = dict[str, Any]

FHIR_VERSION = "4.0.1"
DATE = "2026-11-22"
"""When what is offered changed last."""
READING = frozenset({"read", "vread", "search-type"})
_OAUTH = ("authorize", "token", "introspect", "revoke")
_OAUTH_URIS = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"
_SECURITY_SERVICE = "http://terminology.hl7.org/CodeSystem/restful-security-service"


def statement(settings: Settings, *, read_only: bool = False) -> Json:
    """What this server offers at its FHIR base."""
    return {
        "resourceType": "CapabilityStatement",
        **_release(),
        "kind": "instance",
        "software": {"name": "Isocenter", "version": version("isocenter")},
        "implementation": {"description": "Isocenter: imaging over FHIR", "url": settings.fhir_base},
        "fhirVersion": FHIR_VERSION,
        "format": [MEDIA_TYPE, "json"],
        "rest": [
            {
                "mode": "server",
                "security": _security(settings),
                "resource": [_resource(offer, read_only) for offer in offers().values()],
            }
        ],
    }


def terminology() -> Json:
    """What this server offers of terminology: nothing."""
    return {"resourceType": "TerminologyCapabilities", **_release(), "kind": "capability"}


def _release() -> Json:
    return {"status": "active", "date": DATE}


def _security(settings: Settings) -> Json:
    uris = [{"url": name, "valueUri": f"{settings.public_url}/auth/{name}"} for name in _OAUTH]
    service = {"coding": [{"system": _SECURITY_SERVICE, "code": "SMART-on-FHIR"}], "text": "SMART App Launch 2.2"}
    return {"extension": [{"url": _OAUTH_URIS, "extension": uris}], "cors": True, "service": [service]}


def _resource(offer: Offer, read_only: bool) -> Json:
    served = offer.interactions & READING if read_only else offer.interactions
    update: Json = {"updateCreate": True} if "update" in served else {}
    return {
        "type": offer.resource_type,
        "profile": f"http://hl7.org/fhir/StructureDefinition/{offer.resource_type}",
        "interaction": [{"code": code} for code in INTERACTIONS if code in served],
        "versioning": "versioned",
        "readHistory": "vread" in served,
        **update,
        "conditionalRead": "not-match",
        "referencePolicy": ["literal"],
        **(_search(offer) if "search-type" in served else {}),
    }


def _search(offer: Offer) -> Json:
    shared = definitions.read("search-parameters.json")["Resource"]
    own = [(name, parameter.url, parameter.type) for name, parameter in offer.search.items()]
    common = [(name, shared[name]["url"], shared[name]["type"]) for name in COMMON]
    found: Json = {
        "searchInclude": includes(offer),
        "searchRevInclude": [
            f"{other.resource_type}:{name}"
            for other in offers().values()
            for name, parameter in sorted(other.search.items())
            if parameter.type == "reference" and offer.resource_type in (parameter.targets or {offer.resource_type})
        ],
        "searchParam": [{"name": name, "definition": url, "type": kind} for name, url, kind in sorted(own + common)],
    }
    return {name: value for name, value in found.items() if value}


def includes(offer: Offer) -> list[str]:
    """What `_include` takes for this type."""
    names = sorted(name for name, parameter in offer.search.items() if parameter.type == "reference")
    return [f"{offer.resource_type}:{name}" for name in names]

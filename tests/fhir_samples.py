"""A value for each kind of search parameter, as a search that is understood."""

from __future__ import annotations

from app.fhir.registry import Parameter

PLAIN = {
    "token": "http://example.org|a",
    "uri": "http://example.org/a",
    "date": "ge2020-01-01",
    "string": "a",
    "reference": "1",
    "number": "5",
    "quantity": "5.4|http://unitsofmeasure.org|mm",
}


def sample(parameter: Parameter, modifier: str = "") -> str:
    """Something the parameter may be asked for, with or without a modifier."""
    match modifier:
        case "missing":
            return "false"
        case "of-type":
            return "http://terminology.hl7.org/CodeSystem/v2-0203|MR|1"
        case "identifier":
            return "http://example.org|1"
    if parameter.type == "composite":
        return "$".join(sample(part) for part in parameter.components)
    return PLAIN[parameter.type]

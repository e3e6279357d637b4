"""The FHIR interface told to tools and to people: OpenAPI 3.1 and one page, made of the registry (https://spec.openapis.org/oas/v3.1.0)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

from app.fhir import capability, definitions
from app.fhir.capability import Json
from app.fhir.definitions import Element, Kind
from app.fhir.outcome import MEDIA_TYPE
from app.fhir.registry import INTERACTIONS, Offer, Parameter, offers, operations
from app.settings import Settings

_HERE = Path(__file__).parent
_STYLE = (_HERE / "static" / "api.css").read_text("utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
PAGE_HEADERS: Mapping[str, str] = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
EXAMPLES: Mapping[str, str] = {
    "the studies of a patient since spring, newest first, with the addresses of their images": (
        "ImagingStudy?patient=Patient/1&started=ge2026-03-01&_sort=-started&_include=ImagingStudy:endpoint"
    ),
    "a study by its Study Instance UID": "ImagingStudy?identifier=urn:dicom:uid|urn:oid:1.2.3",
    "CT studies of the patient with this record number": "ImagingStudy?patient.identifier=4711&modality=CT",
    "the study of an accession number": "ImagingStudy?accession=A-1",
    "open orders, only what a list needs": "ServiceRequest?status=active&_elements=status,code,subject,authoredOn",
    "final reports on patients of a name, with the findings they rest on": (
        "DiagnosticReport?subject:Patient.name=muster&status=final,amended&_include=DiagnosticReport:result"
    ),
    "patients who have a CT study": "Patient?_has:ImagingStudy:patient:modality=CT",
    "measurements above 10 mm": "Observation?value-quantity=gt10|http://unitsofmeasure.org|mm",
    "how many reports there are": "DiagnosticReport?_summary=count",
}
"""Searches that work as they stand, below the FHIR base."""

_ID = {"type": "string", "pattern": r"^[A-Za-z0-9\-.]{1,64}$"}
_DAY = r"\d{4}(-\d\d(-\d\d)?)?"
_TIME = r"T\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+\-]\d\d:\d\d)?"
_PRIMITIVES: Mapping[str, Json] = {
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "unsignedInt": {"type": "integer", "minimum": 0},
    "positiveInt": {"type": "integer", "minimum": 1},
    "decimal": {"type": "number"},
    "id": _ID,
    "code": {"type": "string", "pattern": r"^[^\s]+(\s[^\s]+)*$"},
    "date": {"type": "string", "pattern": rf"^{_DAY}$"},
    "dateTime": {"type": "string", "pattern": rf"^{_DAY}({_TIME})?$"},
    "instant": {"type": "string", "format": "date-time"},
}
_VALUES: Mapping[str, str] = {
    "date": rf"^(eq|ne|gt|lt|ge|le|sa|eb|ap)?{_DAY}({_TIME})?(,.+)*$",
    "number": r"^(eq|ne|gt|lt|ge|le|sa|eb|ap)?[+\-]?\d.*$",
    "quantity": r"^(eq|ne|gt|lt|ge|le|sa|eb|ap)?[+\-]?\d.*$",
    "composite": r"^.+\$.+$",
}
CONTROLS: Mapping[str, Json] = {
    "_count": {"type": "integer", "minimum": 0},
    "_sort": {"type": "string", "minLength": 1},
    "_total": {"enum": ["none", "estimate", "accurate"]},
    "_summary": {"enum": ["true", "text", "data", "count", "false"]},
    "_elements": {"type": "string", "minLength": 1},
    "_include": {"type": "array", "items": {"type": "string", "minLength": 1}},
    "_revinclude": {"type": "array", "items": {"type": "string", "minLength": 1}},
}
FORM: Mapping[str, Json] = {"_format": {"enum": ["json", MEDIA_TYPE]}, "_pretty": {"enum": ["true", "false"]}}
_HISTORY: Mapping[str, Json] = {
    "_count": {"type": "integer", "minimum": 0},
    "_since": {"type": "string", "format": "date-time"},
    "_at": {"type": "string", "pattern": _VALUES["date"]},
}
HEADERS: Mapping[str, Json] = {
    "If-Match": {"type": "string", "pattern": r'^W/"\d{1,9}"$'},
    "If-None-Match": {"type": "string", "pattern": r'^W/"\d{1,9}"$'},
    "If-None-Exist": {"type": "string", "minLength": 1},
    "Prefer": {"enum": ["return=minimal", "return=representation", "return=OperationOutcome", "handling=lenient"]},
}
_ERRORS: Mapping[int, str] = {
    400: "The request cannot be understood",
    401: "No valid token",
    403: "The token does not allow it",
    404: "There is no such thing here",
    406: "No JSON of FHIR R4 is accepted",
    409: "It contradicts what is stored, or others refer to it",
    410: "It was deleted",
    412: "A condition does not hold",
    413: "The body is too large",
    415: "The body is of a media type that is not taken",
    422: "The content breaks a rule",
}
_READS = (400, 401, 403, 404, 406)
_WRITES = (400, 401, 403, 404, 406, 409, 410, 412, 413, 415, 422)


def document(settings: Settings) -> Json:
    """The OpenAPI document of the FHIR base."""
    paths: Json = dict(_base())
    for one in offers().values():
        paths |= dict(_paths(one))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Isocenter: FHIR R4",
            "version": version("isocenter"),
            "description": "Made of what is served. Search parameters also take their modifiers, chains and _has.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": settings.fhir_base}],
        "security": [{"smart": []}],
        "tags": [{"name": "server"}, *({"name": name} for name in offers())],
        "paths": paths,
        "components": _components(settings),
    }


def page(settings: Settings) -> str:
    """One page for people: types, parameters, examples."""
    # Loaded late: the page is made once, when somebody first asks for it (docs/decisions/0078).
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = [
        {
            "name": one.resource_type,
            "interactions": [code for code in INTERACTIONS if code in one.interactions],
            "protected": sorted(one.protected),
            "parameters": [_row(one, parameter) for _, parameter in sorted(one.search.items())],
        }
        for one in offers().values()
    ]
    return pages.get_template("api.html").render(
        style=_STYLE,
        base=settings.fhir_base,
        version=version("isocenter"),
        types=rows,
        examples=EXAMPLES,
    )


def _row(one: Offer, parameter: Parameter) -> Json:
    aliases = sorted(alias for alias, name in one.aliases.items() if name == parameter.name)
    return {
        "name": parameter.name,
        "aliases": aliases,
        "type": parameter.type,
        "modifiers": capability.modifiers(parameter),
        "expression": parameter.expression,
    }


# --- paths ---------------------------------------------------------------------------------------------------


def _base() -> Iterator[tuple[str, Json]]:
    """What is offered at the base itself."""
    told = _operation(("server", "capabilities", "What the server offers"), ["mode", *FORM])
    answers = _answers(200, "CapabilityStatement", (400, 406))
    yield "/metadata", {"get": {**told, "security": [], "responses": answers}}
    common = [f"Resource.{name}" for name, _ in capability.common()]
    query = ["_type", *common, *CONTROLS]
    several = _operation(("server", "bundle", "A batch or a transaction"), FORM, errors=_WRITES)
    yield (
        "/",
        {
            "get": _operation(("server", "search-system", "Search several types"), [*query, *FORM]),
            "post": {**several, "requestBody": _body("Bundle")},
        },
    )
    form = _operation(("server", "search-system-form", "Search several types by a form"), FORM, errors=(*_READS, 415))
    yield "/_search", {"post": {**form, "requestBody": _form(query)}}
    yield "/_history", {"get": _operation(("server", "history-system", "All versions"), [*_HISTORY, *FORM])}
    for one in operations().values():
        told = _operation(("server", f"operation-{one.name}", one.title), FORM)
        yield f"/${one.name}", {"get": {**told, "responses": _answers(200, "Parameters", _READS)}}


def _paths(one: Offer) -> Iterator[tuple[str, Json]]:
    """The addresses of one type."""
    served, name = one.interactions, one.resource_type
    yield f"/{name}", _offered(one, {"get": "search-type", "post": "create", **_CONDITIONAL})
    yield f"/{name}/_search", {"post": _search_form(one)}
    yield f"/{name}/{{id}}", {"parameters": [_ref("id")], **_offered(one, _INSTANCE)}
    if "history-type" in served:
        yield f"/{name}/_history", {"get": _history(one, "history-type", "All versions of the type")}
    if "history-instance" in served:
        past = _history(one, "history-instance", "All versions of the resource")
        yield f"/{name}/{{id}}/_history", {"parameters": [_ref("id")], "get": past}
    if "vread" in served:
        old = _operation((name, f"vread-{name}", "One version"), FORM, answer=name, errors=(*_READS, 410))
        yield f"/{name}/{{id}}/_history/{{version}}", {"parameters": [_ref("id"), _ref("version")], "get": old}
    if name in definitions.read("compartments.json"):
        about = (name, f"search-compartment-{name}", f"What belongs to the {name}, of one type or of all")
        inside = _operation(about, [*CONTROLS, *FORM])
        yield f"/{name}/{{id}}/{{type}}", {"parameters": [_ref("id"), _ref("type")], "get": inside}


_CONDITIONAL = {"put": "update", "patch": "patch", "delete": "delete"}
_INSTANCE = {"get": "read", **_CONDITIONAL}
_WORDS = {
    "read": "Read",
    "search-type": "Search",
    "create": "Create",
    "update": "Update, or create under this id",
    "patch": "Patch",
    "delete": "Delete",
}


def _offered(one: Offer, methods: Mapping[str, str]) -> Json:
    """The operations of one address that the type has."""
    condition = methods is not _INSTANCE
    return {verb: _typed(one, code, condition) for verb, code in methods.items() if code in one.interactions}


def _typed(one: Offer, code: str, condition: bool) -> Json:
    """One interaction with a type, with an instance, or with what a search finds."""
    if code == "search-type":
        return _operation((one.resource_type, f"{code}-{one.resource_type}", _WORDS[code]), _searching(one))
    if code == "read":
        return _read(one)
    return _write(one, code, condition and code in _CONDITIONAL.values())


def _searching(one: Offer) -> list[str]:
    return [*_criteria(one), *CONTROLS, *FORM, "Prefer"]


def _read(one: Offer) -> Json:
    name = one.resource_type
    query = ["_summary", "_elements", *FORM, "If-None-Match"]
    made = _operation((name, f"read-{name}", _WORDS["read"]), query, answer=name, errors=(*_READS, 410))
    made["responses"]["304"] = {"description": "Unchanged"}
    return made


def _write(one: Offer, code: str, is_condition: bool) -> Json:
    name = one.resource_type
    criteria = [key for key in _criteria(one) if key.endswith((".identifier", "._id"))] if is_condition else []
    about = (
        (name, f"conditional-{code}-{name}", f"{_WORDS[code]}, where any search criteria find one")
        if is_condition
        else (name, f"{code}-{name}", _WORDS[code])
    )
    made = _operation(about, [*criteria, *FORM, *_HEADERS_OF[code]], answer=name, errors=_WRITES)
    if code == "delete":
        made["responses"] = {"204": {"description": "Deleted, or gone already"}, **_answers(None, "", _WRITES)}
        return made
    made["requestBody"] = _patch_body() if code == "patch" else _body(name)
    made["responses"] = {"201": made["responses"]["200"], **made["responses"]}
    return made


_HEADERS_OF = {
    "create": ("If-None-Exist", "Prefer"),
    "update": ("If-Match", "Prefer"),
    "patch": ("If-Match", "Prefer"),
    "delete": ("If-Match",),
}


def _history(one: Offer, code: str, summary: str) -> Json:
    name = one.resource_type
    return _operation((name, f"{code}-{name}", summary), [*_HISTORY, *FORM])


def _search_form(one: Offer) -> Json:
    name = one.resource_type
    made = _operation((name, f"search-form-{name}", "Search by a form"), FORM, errors=(*_READS, 415))
    return {**made, "requestBody": _form([*_criteria(one), *CONTROLS])}


def _operation(
    about: tuple[str, str, str], query: Iterable[str], *, answer: str = "Bundle", errors: tuple[int, ...] = _READS
) -> Json:
    """`about` is a tag, a name and a sentence."""
    tag, name, summary = about
    found: Json = {"tags": [tag], "operationId": name, "summary": summary}
    return {**found, "parameters": [_ref(one) for one in query], "responses": _answers(200, answer, errors)}


def _answers(status: int | None, answer: str, errors: tuple[int, ...]) -> Json:
    good = {str(status): {"description": "Done", "content": _content(answer)}} if status else {}
    bad = {str(code): {"$ref": f"#/components/responses/{code}"} for code in errors}
    return {**good, **bad, "default": {"$ref": "#/components/responses/failure"}}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/parameters/{name}"}


def _criteria(one: Offer) -> list[str]:
    shared = [name for name, _ in capability.common()]
    own = [name for name in one.search if name not in shared]
    return [*(f"{one.resource_type}.{name}" for name in own), *(f"Resource.{name}" for name in shared)]


def _content(schema: str) -> Json:
    found: Json = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    if schema == "Binary":
        found["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    return found


def _body(schema: str) -> Json:
    return {"required": True, "content": _content(schema)}


def _patch_body() -> Json:
    steps = {"schema": {"$ref": "#/components/schemas/JsonPatch"}}
    return {"required": True, "content": {"application/json-patch+json": steps, **_content("Parameters")}}


def _form(names: list[str]) -> Json:
    properties = {name.rpartition(".")[2]: _parameters()[name]["schema"] for name in names}
    schema = {"type": "object", "properties": properties}
    return {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": schema}}}


# --- components ----------------------------------------------------------------------------------------------


def _components(settings: Settings) -> Json:
    flow = {
        "authorizationUrl": f"{settings.public_url}/auth/authorize",
        "tokenUrl": f"{settings.public_url}/auth/token",
        "scopes": {},
    }
    failure = {"content": _content("OperationOutcome")}
    return {
        "securitySchemes": {"smart": {"type": "oauth2", "flows": {"authorizationCode": flow}}},
        "parameters": _parameters(),
        "responses": {
            **{str(code): {"description": text, **failure} for code, text in _ERRORS.items()},
            "failure": {"description": "Another failure", **failure},
        },
        "schemas": _schemas(),
    }


@cache
def _parameters() -> Json:
    found: Json = {
        "id": {"name": "id", "in": "path", "required": True, "schema": _ID},
        "version": {"name": "version", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1}},
        "type": {"name": "type", "in": "path", "required": True, "schema": {"enum": [*offers(), "*"]}},
        "_type": {"name": "_type", "in": "query", "schema": {"enum": list(offers())}},
        "mode": {"name": "mode", "in": "query", "schema": {"enum": ["full", "normative", "terminology"]}},
    }
    for rows, place in ((_HISTORY, "query"), (CONTROLS, "query"), (FORM, "query"), (HEADERS, "header")):
        found |= {name: {"name": name, "in": place, "schema": schema} for name, schema in rows.items()}
    for name, row in capability.common():
        found[f"Resource.{name}"] = _parameter(name, row["type"], "")
    for one in offers().values():
        for name, parameter in one.search.items():
            found[f"{one.resource_type}.{name}"] = _parameter(name, parameter.type, _about(parameter))
    return found


def _parameter(name: str, kind: str, about: str) -> Json:
    """A repeated parameter means and, a comma within one means or."""
    value: Json = {"type": "string", "minLength": 1}
    if kind in _VALUES:
        value["pattern"] = _VALUES[kind]
    found: Json = {"name": name, "in": "query", "schema": {"type": "array", "items": value}}
    return {**found, "description": about} if about else found


def _about(parameter: Parameter) -> str:
    taken = " ".join(f":{name}" for name in capability.modifiers(parameter))
    return f"{parameter.type}: {parameter.expression}" + (f" (modifiers {taken})" if taken else "")


def _schemas() -> Json:
    steps = {"enum": ["add", "remove", "replace", "move", "copy", "test"]}
    step = {"type": "object", "required": ["op", "path"], "properties": {"op": steps, "path": {"type": "string"}}}
    names = [*offers(), "OperationOutcome", "Parameters"]
    return {
        **{name: _schema(name) for name in names},
        "JsonPatch": {"type": "array", "items": step},
    }


def _schema(resource_type: str) -> Json:
    """The top level of a type: what is inside its datatypes is told by the StructureDefinition."""
    properties: Json = {"resourceType": {"const": resource_type}}
    required = ["resourceType"]
    for element in definitions.elements(resource_type):
        for kind in element.kinds:
            properties[_json_name(element, kind)] = _valued(element, kind)
        if element.required and not element.choice:
            required.append(element.name)
    return {
        "type": "object",
        "description": f"StructureDefinition/{resource_type} tells all of it",
        "required": required,
        "properties": properties,
        "patternProperties": {"^_": {"type": ["object", "array"]}},
        "additionalProperties": False,
    }


def _json_name(element: Element, kind: Kind) -> str:
    return element.name + kind.name[0].upper() + kind.name[1:] if element.choice else element.name


def _valued(element: Element, kind: Kind) -> Json:
    one = _PRIMITIVES.get(kind.name) or {"type": "object" if not kind.name[0].islower() else "string"}
    if kind.name == "code" and element.value_set:
        codes = sorted({code for found in definitions.codes(element.value_set).values() for code in found})
        one = {"enum": codes} if codes else one
    return {"type": "array", "items": one, "minItems": 1} if element.many else one

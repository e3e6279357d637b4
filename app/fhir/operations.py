"""Operations beyond the interactions, each a fact of resources.toml and a function of main (https://hl7.org/fhir/R4/operations.html)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy.engine import Connection

from app.access import Access, Action, Facts, decide
from app.errors import BadRequest, Forbidden, NotSupported
from app.fhir import resources
from app.fhir.calls import Call, Reply
from app.fhir.registry import Operation, OperationParameter, operations
from app.fhir.validation import Json

_SHAPES = frozenset({"_format", "_pretty"})


def run(call: Call, connection: Connection) -> Reply:
    """`GET /$name`: what the operation tells, as Parameters. NotSupported where nothing stands behind it."""
    operation = operations()[call.resource_id.removeprefix("$")]
    call.about["detail"] = {**call.about.get("detail", {}), "operation": operation.name}
    if not may(call.access, operation):
        raise Forbidden
    unknown = sorted({name for name, _ in call.criteria} - _SHAPES)
    if unknown:
        raise BadRequest(f"this operation takes no parameter {unknown[0]}")
    tell = call.door.operations.get(operation.name)
    if tell is None:
        raise NotSupported("this server does not offer that operation here")
    return Reply(200, resources.dumps(parameters(operation, tell(connection))))


def may(access: Access, operation: Operation) -> bool:
    """Who has the operation's right, or a system scope that reads the type it is about without any bound."""
    system = tuple(scope for scope in access.scopes if scope.context == "system")
    own = Access(access.client_id, studies=access.studies, scopes=system)
    return operation.right in access.rights or decide(own, Action("r", operation.about), Facts())


def parameters(operation: Operation, told: Mapping[str, Any]) -> Json:
    """A Parameters resource: what has no value is left out."""
    return {"resourceType": "Parameters", "parameter": list(_rows(operation.parameters, told))}


def _rows(declared: Iterable[OperationParameter], told: Mapping[str, Any]) -> Iterable[Json]:
    for one in declared:
        value = told.get(one.name.replace("-", "_"))
        if value is None or value == "":
            continue
        if one.parts:
            yield {"name": one.name, "part": list(_rows(one.parts, value))}
        else:
            yield {"name": one.name, f"value{one.type[0].upper()}{one.type[1:]}": value}

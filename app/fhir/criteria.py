"""One criterion of a search: a parameter with its modifier, a chain or a `_has` (https://hl7.org/fhir/R4/search.html#chaining)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from dataclasses import replace

from app.errors import BadRequest, Issue
from app.fhir import conditions
from app.fhir.conditions import KINDS, refusal, split
from app.fhir.registry import Offer, Parameter, offers
from app.fhir.site import Site, here
from app.store.query import Clause, Ids, Link, Present, Query, Referred

COMMON = ("_id", "_lastUpdated")
"""What every type can be found by and no registry row says: columns of the resource itself."""
CONTROLS = ("_count", "_sort", "_include", "_revinclude", "_summary", "_elements", "_total")
"""What shapes the answer and is no criterion."""
MAX_DEPTH = 5
"""At most so many references from the resource to what is asked of another one."""
MAX_NAME = 64
_REVERSE = "_has:"
_NAME_PARTS = {"name.given": "given", "name.family": "family"}
"""IHE's IMR asks for the parts of a name by path, where R4 has a parameter for each."""
_SHOWN = re.compile(r"[\w.:\-]{1,40}")

Criterion = tuple[str, Clause]
"""The word as the registry spells it, and what it demands."""


class Unknown(BadRequest):
    """There is no such search parameter."""


def criterion(offer: Offer, word: str, value: str, site: Site, depth: int = 0) -> Criterion:
    """What one word and its value demand; BadRequest when they are not understood."""
    if depth > MAX_DEPTH:
        raise refusal(f"a chain has at most {MAX_DEPTH} references", re.split(r"[.:]", word)[0])
    if word.startswith(_REVERSE):
        return _reversed(offer, word, value, site, depth)
    path, _, _ = word.partition(":")
    if path in _NAME_PARTS and _NAME_PARTS[path] in offer.search:
        word = _NAME_PARTS[path] + word.removeprefix(path)
    head, dot, rest = word.partition(".")
    name, colon, modifier = head.partition(":")
    name = offer.aliases.get(name, name)
    if name in COMMON and not dot:
        return name + colon + modifier, _common(name, modifier, value, site)
    parameter = offer.search.get(name)
    if parameter is None:
        raise unknown(offer, name)
    if dot:
        return _chained(parameter, modifier, rest, (value, site, depth))
    return name + colon + modifier, _plain(parameter, modifier, value, site)


def clause(offer: Offer, word: str, value: str, base: str = "") -> Clause:
    """One criterion without its word."""
    return criterion(offer, word, value, Site(base, here().zone))[1]


def legal(offer: Offer) -> list[str]:
    """Every parameter that a search of this type takes."""
    return sorted([*offer.search, *COMMON, *CONTROLS, "_has"])


def unknown(offer: Offer, name: str) -> Unknown:
    """The refusal of a name that is no parameter, with the one that was probably meant, and all there are."""
    shown = name if _SHOWN.fullmatch(name) else "a parameter"
    reason = offer.omitted.get(name)
    told = f" ({reason})." if reason else _guess(name, [*legal(offer), *offer.aliases])
    diagnostics = f"{offer.resource_type} has no search parameter {shown}{told} It has {', '.join(legal(offer))}"
    return Unknown(issues=(Issue("not-supported", diagnostics, f"http.{shown}"),))


def _guess(name: str, known: Iterable[str]) -> str:
    # Nobody meant one of ours by a word that is longer than all of them.
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7) if len(name) <= MAX_NAME else []
    return f": did you mean {close[0]}?" if close else "."


# --- a parameter of the type itself ---------------------------------------------------------------------------


def _plain(parameter: Parameter, modifier: str, value: str, site: Site) -> Clause:
    name = parameter.name
    if modifier and not _modifies(parameter, modifier):
        raise refusal(f"{name} does not take that modifier; it takes {_legal_modifiers(parameter)}", name)
    if modifier == "missing":
        return _missing(parameter, value)
    found = (one for text in split(value, ",") for one in conditions.conditions(parameter, modifier, text, site))
    return Clause(tuple(found), negated=modifier == "not")


def _common(name: str, modifier: str, value: str, site: Site) -> Clause:
    if modifier:
        raise refusal(f"{name} takes no modifier", name)
    parts = split(value, ",")
    if not all(parts):
        raise refusal(f"{name} has an empty value", name)
    if name == "_id":
        return Clause((Ids(frozenset(parts)),))
    return Clause(tuple(conditions.date(name, text, site) for text in parts))


def _missing(parameter: Parameter, value: str) -> Clause:
    if value not in {"true", "false"}:
        raise refusal(f"{parameter.name}:missing must be true or false", parameter.name)
    return Clause((Present(parameter.name, KINDS[parameter.type]),), negated=value == "true")


def _modifies(parameter: Parameter, modifier: str) -> bool:
    if parameter.type == "reference" and modifier in conditions.targets(parameter):
        return True
    return modifier in conditions.modifiers(parameter)


def _legal_modifiers(parameter: Parameter) -> str:
    names = [f":{name}" for name in conditions.modifiers(parameter)]
    return " ".join([*names, *([":[type]"] if parameter.type == "reference" else [])]) or "none"


# --- through references ---------------------------------------------------------------------------------------


def _chained(parameter: Parameter, modifier: str, rest: str, asked: tuple[str, Site, int]) -> Criterion:
    """`parameter.rest`: what `rest` demands of what the reference leads to, whichever type has such a parameter."""
    name, (value, site, depth) = parameter.name, asked
    if parameter.type != "reference":
        raise refusal(f"{name} is no reference, so nothing can be chained to it", name)
    possible = conditions.targets(parameter)
    if modifier and modifier not in possible:
        raise refusal(f"{name} leads to {', '.join(sorted(possible))}", name)
    typed = f"{name}:{modifier}" if modifier else name
    links: list[Link] = []
    word = ""
    for target in _searchable([modifier] if modifier else possible):
        try:
            word, found = criterion(target, rest, value, site, depth + 1)
        except BadRequest as error:
            if modifier or not isinstance(error, Unknown):
                raise _behind(error, f"{typed}.") from error
            continue
        links.append(Link(name, Query(target.resource_type, (found,), natural=target.sort)))
    if not links:
        raise refusal(f"nothing that {typed} leads to here has that search parameter", typed)
    return f"{typed}.{word}", Clause(tuple(links))


def _reversed(offer: Offer, word: str, value: str, site: Site, depth: int) -> Criterion:
    """`_has:Type:reference:rest`: something of that type meets `rest` and leads here."""
    match word.split(":", 3):
        case [_, kind, reference, rest] if rest:
            found = _searchable([kind])
        case _:
            raise refusal("_has must be _has:Type:reference:parameter", "_has")
    parameter = found[0].parameter(reference) if found else None
    if parameter is None or parameter.type != "reference" or offer.resource_type not in conditions.targets(parameter):
        raise refusal(f"_has needs a type and one of its references that lead to {offer.resource_type}", "_has")
    before = f"_has:{kind}:{parameter.name}:"
    try:
        inner, demanded = criterion(found[0], rest, value, site, depth + 1)
    except BadRequest as error:
        raise _behind(error, before) from error
    return before + inner, Clause((Referred(parameter.name, Query(kind, (demanded,), natural=found[0].sort)),))


def _searchable(names: Collection[str]) -> list[Offer]:
    """The types among these that can be searched beside resource rows."""
    known = (offers().get(name) for name in sorted(names))
    return [offer for offer in known if offer and "search-type" in offer.interactions and not offer.kept]


def _behind(error: BadRequest, before: str) -> BadRequest:
    """The same refusal, which names the way to what it refuses."""
    moved = (
        replace(issue, expression=f"http.{before}{(issue.expression or '').removeprefix('http.')}")
        for issue in error.issues
    )
    return type(error)(issues=tuple(moved))

"""Negotiation of scopes: what was asked, cut to what client, user, context and study allow (SMART App Launch 2.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote

from msgspec.structs import replace

from app.access import VERBS, Scope, parse_scope, parse_scopes
from app.smart.facts import facts


@dataclass(frozen=True, slots=True)
class Asked:
    """The parts of a scope string: each resource scope with the words it was asked in, and the other words."""

    scopes: tuple[tuple[Scope, str], ...]
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        """The scope string again, words first."""
        return " ".join((*self.words, *(text for _, text in self.scopes)))


def parse(text: str) -> Asked:
    """A scope string without its malformed, unenforceable and repeated parts."""
    scopes: dict[str, Scope] = {}
    words: dict[str, None] = {}
    for word in text.split():
        scope = parse_scope(word)
        if scope is not None:
            if enforceable(scope):
                scopes[word] = scope
        elif "/" not in word or word in facts().words or word in facts().system_words:
            words[word] = None
    return Asked(tuple((scope, word) for word, scope in scopes.items()), tuple(words))


def enforceable(scope: Scope) -> bool:
    """Whether every criterion is one we evaluate; chains, modifiers and `_filter` never are."""
    if scope.criteria and scope.resource_type == "*":
        return False
    allowed = facts().granular.get(scope.resource_type, ())
    return all(name in allowed and value for name, value in scope.criteria)


def render(scope: Scope) -> str:
    """A scope in v2 form."""
    verbs = "".join(verb for verb in VERBS if verb in scope.verbs)
    query = "&".join(f"{name}={quote(value, safe=':/|,')}" for name, value in scope.criteria)
    return f"{scope.context}/{scope.resource_type}.{verbs}" + (f"?{query}" if query else "")


def intersect(scope: Scope, bound: Scope) -> Scope | None:
    """What `scope` allows within `bound` (contexts aside); None when that is nothing."""
    verbs = scope.verbs & bound.verbs
    types = {scope.resource_type, bound.resource_type} - {"*"} or {"*"}
    if not verbs or len(types) > 1:
        return None
    criteria = tuple(dict.fromkeys((*scope.criteria, *bound.criteria)))
    met = Scope(scope.context, types.pop(), verbs, criteria)
    return met if enforceable(met) else None


def within(asked: Asked, allowed: str, *, any_context: bool = False) -> Asked:
    """What was asked, cut to an allowed scope string: by meaning, so `.r` lies in `.rs` and `/X.r` in `/*.rs`."""
    bounds, words = parse_scopes(allowed)
    return Asked(
        _union(
            _cut(scope, text, [bound for bound in bounds if any_context or bound.context == scope.context])
            for scope, text in asked.scopes
        ),
        tuple(word for word in asked.words if word in words),
    )


def _cut(scope: Scope, text: str, bounds: Iterable[Scope]) -> Iterable[tuple[Scope, str]]:
    met = [inner for bound in bounds if (inner := intersect(scope, bound)) is not None]
    if scope in met:
        # Unchanged: said in the words it was asked in, v1 stays v1.
        return [(scope, text)]
    return [(inner, render(inner)) for inner in _merged(met)]


def _merged(scopes: Iterable[Scope]) -> list[Scope]:
    verbs: dict[tuple[str, tuple[tuple[str, str], ...]], Scope] = {}
    for scope in scopes:
        key = (scope.resource_type, scope.criteria)
        held = verbs.get(key)
        verbs[key] = scope if held is None else replace(held, verbs=held.verbs | scope.verbs)
    return list(verbs.values())


def _union(groups: Iterable[Iterable[tuple[Scope, str]]]) -> tuple[tuple[Scope, str], ...]:
    said = {text: scope for group in groups for scope, text in group}
    return tuple((scope, text) for text, scope in said.items())


def for_person(asked: Asked, *, cap: str, patient: bool) -> Asked:
    """What a program may do for this person: no system scope, patient/ scopes only with a patient."""
    contexts = {"user", "patient"} if patient else {"user"}
    scopes = tuple((scope, text) for scope, text in asked.scopes if scope.context in contexts)
    capped = within(Asked(scopes, ()), cap, any_context=True)
    right = frozenset(word for word in cap.split() if "/" in word)
    words = tuple(
        word for word in asked.words if word in facts().words and (not word.startswith("isocenter/") or word in right)
    )
    return Asked(capped.scopes, words)


def for_system(asked: Asked) -> Asked:
    """What a program may do for itself."""
    scopes = tuple((scope, text) for scope, text in asked.scopes if scope.context == "system")
    return Asked(scopes, tuple(word for word in asked.words if word.startswith("isocenter/")))


def for_study(asked: Asked, about: Mapping[str, str | None]) -> Asked:
    """One study written in plain SMART v2: every scope bound to it, and what cannot be bound dropped."""
    bound = (_bind(scope, about) for scope, _ in asked.scopes if scope.context == "patient")
    return Asked(_union([(scope, render(scope))] for scope in bound if scope is not None), asked.words)


def _bind(scope: Scope, about: Mapping[str, str | None]) -> Scope | None:
    rule = facts().study.get(scope.resource_type)
    verbs = scope.verbs & frozenset(rule.verbs) if rule else frozenset[str]()
    if rule is None or not verbs:
        return None
    criterion = rule.criterion
    for name, value in about.items():
        if f"{{{name}}}" in criterion:
            if not value:
                return None
            criterion = criterion.replace(f"{{{name}}}", value)
    criteria = dict.fromkeys((*scope.criteria, *parse_qsl(criterion)))
    return Scope("patient", scope.resource_type, verbs, tuple(criteria))


def for_patients(asked: Asked, patients: Iterable[str]) -> Asked:
    """System scopes cut to listed patients."""
    ids = ",".join(patients)
    references = ",".join(f"Patient/{patient_id}" for patient_id in patients)

    def cut(scope: Scope) -> Scope:
        criterion = ("_id", ids) if scope.resource_type == "Patient" else ("patient", references)
        return replace(scope, criteria=(*scope.criteria, criterion))

    listed = [cut(scope) for scope, _ in asked.scopes]
    return Asked(tuple((scope, render(scope)) for scope in listed if enforceable(scope)), asked.words)


def covers(granted: str, wanted: str) -> bool:
    """Whether every part of `wanted` lies within `granted` (RFC 6749 section 6, read semantically)."""
    bounds, words = parse_scopes(granted)
    asked = parse(wanted)
    said = len(asked.scopes) + len(asked.words)
    if said != len(set(wanted.split())) or not set(asked.words) <= words:
        return False
    return all(any(_holds(bound, scope) for bound in bounds) for scope, _ in asked.scopes)


def _holds(bound: Scope, scope: Scope) -> bool:
    same = bound.context == scope.context and bound.resource_type in {"*", scope.resource_type}
    return same and scope.verbs <= bound.verbs and set(bound.criteria) <= set(scope.criteria)

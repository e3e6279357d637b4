"""What the authorization server offers, read from capability/smart.toml (SMART App Launch 2.2, conformance)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# In a wheel the fact-books lie inside the package, in a checkout beside it.
_FILES = (_PACKAGE / "_capability" / "smart.toml", _PACKAGE.parent / "capability" / "smart.toml")


@dataclass(frozen=True, slots=True)
class Limits:
    """Lifetimes and sizes."""

    code_seconds: int
    launch_seconds: int
    access_seconds: int
    study_access_seconds: int
    system_access_seconds: int
    online_seconds: int
    offline_seconds: int
    login_seconds: int
    assertion_seconds: int
    assertion_leeway_seconds: int
    id_token_seconds: int
    request_bytes: int
    scopes: int
    login_tries_per_minute: int


@dataclass(frozen=True, slots=True)
class StudyRule:
    """What of a type stays in a grant for one study, and the criterion that binds it."""

    verbs: str
    criterion: str


@dataclass(frozen=True, slots=True)
class Facts:
    """The whole fact-book."""

    capabilities: tuple[str, ...]
    grant_types: tuple[str, ...]
    token_endpoint_auth_methods: tuple[str, ...]
    introspection_auth_methods: tuple[str, ...]
    assertion_algorithms: tuple[str, ...]
    words: Mapping[str, str]
    system_words: Mapping[str, str]
    style: Mapping[str, str]
    limits: Limits
    roles: Mapping[str, str]
    granular: Mapping[str, tuple[str, ...]]
    study: Mapping[str, StudyRule]


@cache
def facts() -> Facts:
    """The fact-book, read once."""
    book = tomllib.loads(next(path for path in _FILES if path.is_file()).read_text("utf-8"))
    lists = {name: tuple(value) for name, value in book.items() if isinstance(value, list)}
    return Facts(
        **lists,
        words=book["words"],
        system_words=book["system_words"],
        style=book["style"],
        limits=Limits(**book["limits"]),
        roles=book["roles"],
        granular={name: tuple(parameters) for name, parameters in book["granular"].items()},
        study={name: StudyRule(**rule) for name, rule in book["study"].items()},
    )


def limits() -> Limits:
    """Lifetimes and sizes."""
    return facts().limits

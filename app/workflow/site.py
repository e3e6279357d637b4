"""What the workflow knows of the installation: zone, authorities and the procedure catalogue."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from app.fhir.mapping import worklist
from app.settings import Settings
from app.store.database import Store
from app.workflow.headers import Headers

if TYPE_CHECKING:
    from app.dicom.orthanc import Orthanc

_PACKAGED = Path(__file__).parents[1] / "_capability"
CATALOGUE = (_PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "capability") / "procedures.toml"
UNKNOWN_ISSUER = "urn:isocenter:issuer:"
"""An issuer that is not configured is kept as an authority of its own, never taken for a known one."""


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One step of a procedure as the catalogue plans it."""

    modality: str
    station: str
    protocol: str


@dataclass(frozen=True, slots=True)
class Procedure:
    """A procedure the site performs; `known` is false for the catalogue's default."""

    name: str
    codings: frozenset[tuple[str, str]]
    steps: tuple[PlannedStep, ...]
    known: bool = True


@dataclass(frozen=True, slots=True)
class Site:
    """One installation, for the workflow's functions."""

    settings: Settings
    procedures: tuple[Procedure, ...]
    default: Procedure
    worklist: worklist.Site = field(init=False)

    def __post_init__(self) -> None:
        """Name each authority's issuer once."""
        issuers: dict[str, dict[str, str]] = {"mrn": {}, "accession": {}}
        for authority in self.settings.authorities:
            issuers[authority.kind][authority.fhir_system] = authority.dicom_issuer
        made = worklist.Site(self.settings.zone, issuers["mrn"], issuers["accession"])
        object.__setattr__(self, "worklist", made)

    def system(self, kind: Literal["mrn", "accession"], issuer: str | None) -> str:
        """The FHIR identifier system of a number with this DICOM issuer; none means the default authority."""
        if not issuer:
            return self.settings.default_authority(kind).fhir_system
        own = (one for one in self.settings.authorities if one.kind == kind and one.dicom_issuer == issuer)
        found = next(own, None)
        return found.fhir_system if found else UNKNOWN_ISSUER + quote(issuer)

    def procedure(self, codings: list[dict[str, Any]]) -> Procedure:
        """The catalogue's procedure for any of these codings, or its default."""
        asked = {(coding.get("system", ""), coding.get("code", "")) for coding in codings}
        return next((one for one in self.procedures if one.codings & asked), self.default)


@dataclass(frozen=True, slots=True)
class Archive:
    """The archive of one site."""

    store: Store
    orthanc: Orthanc
    site: Site
    headers: Headers = field(default_factory=Headers, compare=False)


def of(settings: Settings) -> Site:
    """The site of these settings."""
    procedures, default = catalogue(CATALOGUE)
    return Site(settings, procedures, default)


@cache
def catalogue(path: Path) -> tuple[tuple[Procedure, ...], Procedure]:
    """The procedures of a catalogue file, and its default."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    default = Procedure("", frozenset(), (PlannedStep(**document["default"]),), known=False)
    procedures = tuple(
        Procedure(
            entry["name"],
            frozenset((coding["system"], coding["code"]) for coding in entry["codings"]),
            tuple(PlannedStep(**step) for step in entry["steps"]),
        )
        for entry in document["procedure"]
    )
    return procedures, default

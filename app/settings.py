"""Settings of one installation: environment `ISOCENTER_*` over `isocenter.toml`; docs/settings.md lists them all."""

from __future__ import annotations

import os
import re
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

Gone = Literal["unknown", "retention", "quality", "safety", "worklist", "never-existed"]
"""Why a study may be gone: nobody said, kept long enough, rejected (KOS 113001, 113037, 113038), or only a test."""
SOP_CLASS = re.compile(r"[0-9]+(\.[0-9]+)+")
LOOPBACK_NAMES = frozenset({"localhost", "ip6-localhost"})


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only be this machine."""
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Authority(BaseModel):
    """Who gives a kind of number, and how each standard names that authority."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mrn", "accession"]
    fhir_system: str
    hl7: str = ""
    dicom_issuer: str = ""
    default: bool = False


class Hl7Connection(BaseModel):
    """One HL7 v2 peer over MLLP."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    role: Literal["placer", "filler", "adt", "results"]
    direction: Literal["in", "out"]
    host: str = "127.0.0.1"
    port: int = 0
    tls: bool = False
    ack_mode: Literal["original", "enhanced"] = "original"
    sender: str = ""


def _known_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError("an IANA time zone such as Europe/Vienna is needed") from error
    return value


Zone = Annotated[str, AfterValidator(_known_zone)]
"""The name of an IANA time zone."""


class Station(BaseModel):
    """A machine, by its Station Name (0008,1010), whose clock runs in another zone than the site's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    timezone: Zone


class Ehr(BaseModel):
    """A hospital EHR whose SMART launches this server accepts as a client."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: str
    client_id: str
    key: str = ""


DEFAULT_AUTHORITIES = (
    Authority(kind="mrn", fhir_system="urn:isocenter:mrn", default=True),
    Authority(kind="accession", fhir_system="urn:isocenter:accession", default=True),
)


class Settings(BaseSettings):
    """Everything that differs between installations."""

    model_config = SettingsConfigDict(
        env_prefix="ISOCENTER_", frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """Address the HTTP server listens on."""
    port: int = 8080
    """TCP port of the HTTP server."""
    dicom_host: str = "127.0.0.1"
    """Address the worklist and MPPS service listens on."""
    mllp_host: str = "127.0.0.1"
    """Address the HL7 v2 listener binds to."""
    public_url: str = "http://localhost:8080"
    """The server's address as clients see it: issuer and base of every link. http only for loopback hosts."""
    viewer_url: str = ""
    """A separate origin for OHIF; empty means the public URL."""
    data_dir: Path = Path("var")
    """SQLite file, keys, spool, caches and the managed Orthanc."""
    cache_mb: int = Field(default=2048, ge=0)
    """Megabytes of disk for frames, metadata and pictures that DICOMweb has served; 0 keeps none."""
    accel_redirect: Annotated[str, Field(pattern=r"^(/[a-z0-9_-]+)?$")] = ""
    """The internal location of an nginx that keeps and sends images for the gateway (`/_kept`); empty: none does."""
    requests_per_grant: int = Field(default=256, ge=1)
    """So many DICOMweb requests of one grant are answered side by side; one more is told to come later."""
    database_url: SecretStr = SecretStr("")
    """`sqlite:///…` or `postgresql+psycopg://…`; empty means SQLite in the data directory."""
    secret_key: SecretStr = SecretStr("")
    """Wraps the keys kept in the database. Generated into the data directory with SQLite, required with PostgreSQL."""
    secret_key_file: Path | None = None
    """A file that holds the secret key."""
    timezone: Zone = "UTC"
    """IANA zone in which zone-less DICOM and HL7 times are read."""
    egress_allow: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    """Networks (CIDR, comma separated) that outbound calls may reach besides public https."""
    quiet_seconds: float = Field(default=10, ge=0)
    """A study is complete after this many seconds without a change."""
    delete_grace: float = Field(default=10, ge=0)
    """Seconds between a study's disappearance from the archive and its withdrawal."""
    sweep_seconds: float = Field(default=180, ge=1)
    """So often the archive is compared with what is published; totals that fall are noticed within seconds anyway."""
    full_sweep_hour: int = Field(default=3, ge=0, le=23)
    """At this hour of the site's day every instance is compared."""
    delete_policy: dict[Gone, Literal["unknown", "cancelled", "entered-in-error"]] = Field(default_factory=dict)
    """What an ImagingStudy becomes whose images are gone, by the reason; a reason not named keeps its default."""
    orthanc_url: str = ""
    """REST root of Orthanc; empty means an Orthanc of our own is started and supervised."""
    orthanc_username: str = ""
    """Orthanc's REST user."""
    orthanc_password: SecretStr = SecretStr("")
    """Orthanc's REST password."""
    orthanc_http_port: int = 18042
    """HTTP port of the managed Orthanc (loopback only)."""
    orthanc_dicom_port: int = 14242
    """DICOM port of the managed Orthanc."""
    store_sop_classes: Annotated[tuple[str, ...], NoDecode] = ("evidence",)
    """What DICOMweb may store: `evidence` (what readers make), `all`, and UIDs of SOP classes, comma separated."""
    store_mb: int = Field(default=512, ge=1)
    """The largest upload over DICOMweb, in MiB."""
    ae_title: str = Field(default="ISOCENTER", max_length=16)
    """AE title of the worklist and MPPS service."""
    dicom_port: int = 11112
    """TCP port of the worklist and MPPS service."""
    mllp_port: int = 2575
    """TCP port of the HL7 v2 listener; 0 turns it off. Not listened on until the HL7 interface is built."""
    ohif_dir: Path | None = None
    """The unpacked OHIF viewer; by default `ohif` in the data directory `var`."""
    demo: bool = False
    """Demo users and the demo EHR; only on loopback."""
    authority: tuple[Authority, ...] = ()
    """`[[authority]]` tables: who gives MRNs and accession numbers. Without any, one default per kind is made."""
    hl7: dict[Literal["connection"], tuple[Hl7Connection, ...]] = Field(default_factory=dict)
    """`[[hl7.connection]]` tables: HL7 v2 peers."""
    station: tuple[Station, ...] = ()
    """`[[station]]` tables: machines whose clocks run in a zone of their own."""
    ehr: tuple[Ehr, ...] = ()
    """`[[ehr]]` tables: hospital EHRs that may launch the viewer."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        *_sources: PydanticBaseSettingsSource,
        **named: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment, then the TOML file."""
        path = Path(os.environ.get("ISOCENTER_CONFIG", "isocenter.toml"))
        return (named["init_settings"], named["env_settings"], TomlConfigSettingsSource(settings_cls, path))

    @field_validator("egress_allow", "store_sop_classes", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("store_sop_classes")
    @classmethod
    def _sop_classes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(one in {"evidence", "all"} or SOP_CLASS.fullmatch(one) for one in value):
            raise ValueError("ISOCENTER_STORE_SOP_CLASSES takes evidence, all, or UIDs of SOP classes")
        return value

    @field_validator("public_url", "viewer_url", "orthanc_url")
    @classmethod
    def _no_trailing_slash(cls, value: str) -> str:
        return value.rstrip("/")

    @model_validator(mode="after")
    def _safe_addresses(self) -> Settings:
        public = urlsplit(self.public_url)
        loopback = is_loopback(public.hostname or "")
        if public.scheme not in {"http", "https"} or not public.hostname:
            raise ValueError("ISOCENTER_PUBLIC_URL must be an absolute http or https address")
        if public.scheme == "http" and not loopback:
            raise ValueError("ISOCENTER_PUBLIC_URL must be https unless its host is loopback")
        if self.demo and not (loopback and is_loopback(self.host)):
            raise ValueError("ISOCENTER_DEMO serves loopback only: set ISOCENTER_HOST and ISOCENTER_PUBLIC_URL to it")
        return self

    @cached_property
    def fhir_base(self) -> str:
        """The FHIR base, which is also the SMART issuer of launches."""
        return f"{self.public_url}/fhir"

    @cached_property
    def dicomweb_base(self) -> str:
        """The DICOMweb service root for bearer tokens."""
        return f"{self.public_url}/dicom-web"

    @cached_property
    def https(self) -> bool:
        """Whether clients reach us by https; decides cookie flags."""
        return self.public_url.startswith("https:")

    @cached_property
    def zone(self) -> ZoneInfo:
        """The site's time zone."""
        return ZoneInfo(self.timezone)

    def zone_of(self, station: str) -> ZoneInfo:
        """The zone of a machine's clock, by its Station Name."""
        return next((ZoneInfo(one.timezone) for one in self.station if one.name == station), self.zone)

    @cached_property
    def authorities(self) -> tuple[Authority, ...]:
        """The configured authorities, with a made default for each kind that has none."""
        kinds = {authority.kind for authority in self.authority}
        return self.authority + tuple(made for made in DEFAULT_AUTHORITIES if made.kind not in kinds)

    def default_authority(self, kind: Literal["mrn", "accession"]) -> Authority:
        """What a value without an issuer means."""
        own = [authority for authority in self.authorities if authority.kind == kind]
        return next((authority for authority in own if authority.default), own[0])

    @cached_property
    def database(self) -> str:
        """The SQLAlchemy URL of the store."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.data_dir / 'isocenter.sqlite'}"

    @cached_property
    def orthanc_root(self) -> str:
        """REST root of the archive in use, configured or managed."""
        return self.orthanc_url or f"http://127.0.0.1:{self.orthanc_http_port}"

    @cached_property
    def web_cache(self) -> Path:
        """Where DICOMweb keeps what it has served."""
        return self.data_dir / "cache" / "dicomweb"

    @cached_property
    def viewer_dir(self) -> Path:
        """Where OHIF's files are."""
        return self.ohif_dir or Path("var/ohif")

"""The tables, declared with sqlmodel; hot paths use their Core form at the end of the file.

Times are integer milliseconds since 1970-01-01 UTC: they sort, page and compare alike on SQLite and PostgreSQL.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

BigSerial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Bytewise = sa.String().with_variant(sa.String(collation="C"), "postgresql")
"""Text that both engines compare and sort alike, byte by byte; only so can a prefix be a range."""
LIVE = sa.text("NOT deleted")


class Resource(SQLModel, table=True):
    """The current version of one FHIR resource; `body` is served as it stands, and comes last: it may be long."""

    __table_args__ = (
        sa.UniqueConstraint("resource_type", "resource_id", name="uq_resource_id"),
        sa.UniqueConstraint("natural_key", name="uq_resource_natural_key"),
        sa.Index(
            "ix_resource_patient",
            *("resource_type", "patient_id", "sort", "rid"),
            sqlite_where=LIVE,
            postgresql_where=LIVE,
        ),
        sa.Index("ix_resource_sort", "resource_type", "sort", "rid", sqlite_where=LIVE, postgresql_where=LIVE),
        sa.Index("ix_resource_updated", "resource_type", "updated", "rid", "deleted"),
        sa.Index("ix_resource_latest", "updated", "rid"),
    )

    rid: int | None = Field(default=None, primary_key=True, sa_type=BigSerial)
    """The number the index tables know the resource by; it never changes."""
    resource_type: str = Field(sa_type=Bytewise)
    resource_id: str = Field(sa_type=Bytewise)
    version: int
    updated: int = Field(sa_type=sa.BigInteger)
    deleted: bool = False
    patient_id: str | None = Field(default=None, sa_type=Bytewise)
    sort: int = Field(default=0, sa_type=sa.BigInteger)
    """The type's natural date, or UNDATED."""
    natural_key: str | None = None
    cause: str = ""
    method: str = ""
    body: bytes


class ResourceVersion(SQLModel, table=True):
    """A version that is no longer current, with what made it and the moment the next one replaced it."""

    __table_args__ = (
        sa.Index("ix_version_updated", "resource_type", "updated", "rid", "version"),
        sa.Index("ix_version_latest", "updated", "rid", "version"),
    )

    rid: int = Field(primary_key=True, sa_type=sa.BigInteger)
    version: int = Field(primary_key=True)
    resource_type: str = Field(sa_type=Bytewise)
    updated: int = Field(sa_type=sa.BigInteger)
    until: int = Field(sa_type=sa.BigInteger)
    deleted: bool = False
    cause: str = ""
    method: str = ""
    body: bytes


class IndexToken(SQLModel, table=True):
    """One token value of one search parameter (system is empty when the value has none).

    `param` numbers the parameter of a type; `sort` is the owner's natural date, so that reading a value's rows
    backwards gives its newest resources first.
    """

    __table_args__ = (sa.Index("ix_token_owner", "rid", "param"), {"sqlite_with_rowid": False})

    param: int = Field(primary_key=True, sa_type=sa.BigInteger)
    value: str = Field(primary_key=True, sa_type=Bytewise)
    sort: int = Field(primary_key=True, sa_type=sa.BigInteger)
    rid: int = Field(primary_key=True, sa_type=sa.BigInteger)
    system: str = Field(primary_key=True, sa_type=Bytewise)


class IndexReference(SQLModel, table=True):
    """One reference; a foreign absolute address has an empty target_type and stands whole in target_id."""

    __table_args__ = (sa.Index("ix_reference_owner", "rid", "param"), {"sqlite_with_rowid": False})

    param: int = Field(primary_key=True, sa_type=sa.BigInteger)
    target_id: str = Field(primary_key=True, sa_type=Bytewise)
    sort: int = Field(primary_key=True, sa_type=sa.BigInteger)
    rid: int = Field(primary_key=True, sa_type=sa.BigInteger)
    target_type: str = Field(primary_key=True, sa_type=Bytewise)


class IndexDate(SQLModel, table=True):
    """The interval [lo, hi) that a date, dateTime, instant or Period covers; open ends are the extremes.

    `apart` marks what the owner's `sort` does not tell: an interval longer than a day, or one of several.
    """

    __table_args__ = (
        sa.Index("ix_date_owner", "rid", "param"),
        sa.Index(
            "ix_date_apart", "param", "lo", "hi", sqlite_where=sa.text("apart"), postgresql_where=sa.text("apart")
        ),
        {"sqlite_with_rowid": False},
    )

    param: int = Field(primary_key=True, sa_type=sa.BigInteger)
    lo: int = Field(primary_key=True, sa_type=sa.BigInteger)
    rid: int = Field(primary_key=True, sa_type=sa.BigInteger)
    hi: int = Field(primary_key=True, sa_type=sa.BigInteger)
    apart: bool = False


class IndexString(SQLModel, table=True):
    """One text, folded for case and accent; `exact` keeps it as written."""

    __table_args__ = (sa.Index("ix_string_owner", "rid", "param"), {"sqlite_with_rowid": False})

    param: int = Field(primary_key=True, sa_type=sa.BigInteger)
    folded: str = Field(primary_key=True, sa_type=Bytewise)
    rid: int = Field(primary_key=True, sa_type=sa.BigInteger)
    exact: str = Field(primary_key=True, sa_type=Bytewise)


class IndexNumber(SQLModel, table=True):
    """One number or quantity; lo and hi are equal unless the value has a comparator."""

    __table_args__ = (sa.Index("ix_number_owner", "rid", "param"), {"sqlite_with_rowid": False})

    param: int = Field(primary_key=True, sa_type=sa.BigInteger)
    lo: float = Field(primary_key=True, sa_type=sa.Double)
    rid: int = Field(primary_key=True, sa_type=sa.BigInteger)
    hi: float = Field(primary_key=True, sa_type=sa.Double)
    system: str = Field(primary_key=True, sa_type=Bytewise)
    code: str = Field(primary_key=True, sa_type=Bytewise)


class Counter(SQLModel, table=True):
    """A number that only grows: accession numbers."""

    name: str = Field(primary_key=True)
    value: int = Field(sa_type=sa.BigInteger)


class Event(SQLModel, table=True):
    """One thing that happened to an order or a study, and its cause. Timelines are read from here."""

    __table_args__ = (sa.Index("ix_event_order", "order_id", "id"),)

    id: int | None = Field(default=None, primary_key=True, sa_type=BigSerial)
    at: int = Field(sa_type=sa.BigInteger)
    kind: str
    order_id: str | None = None
    study_uid: str | None = None
    cause: str
    detail: dict[str, Any] = Field(default_factory=dict, sa_type=sa.JSON)


class Outbox(SQLModel, table=True):
    """One effect outside the database, delivered at least once and in order per key."""

    __table_args__ = (
        sa.Index("ix_outbox_due", "done", "due"),
        sa.Index("ix_outbox_key", "key", "id"),
        sa.UniqueConstraint("kind", "once", name="uq_outbox_once"),
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=BigSerial)
    kind: str
    key: str
    once: str
    """A stable name: a second entry of the same kind and name is the same effect."""
    payload: dict[str, Any] = Field(default_factory=dict, sa_type=sa.JSON)
    due: int = Field(sa_type=sa.BigInteger)
    attempts: int = 0
    claimed_until: int = Field(default=0, sa_type=sa.BigInteger)
    done: int | None = Field(default=None, sa_type=sa.BigInteger)
    error: str = ""


class Cursor(SQLModel, table=True):
    """How far something has been read, and in which epoch of its source."""

    name: str = Field(primary_key=True)
    value: int = Field(default=0, sa_type=sa.BigInteger)
    epoch: str = ""
    detail: dict[str, Any] = Field(default_factory=dict, sa_type=sa.JSON)


class Inbox(SQLModel, table=True):
    """One row of the archive's change log as it was read: what marked a study, and what makes a repeat known."""

    epoch: str = Field(primary_key=True)
    """Which database of the archive counts here."""
    seq: int = Field(primary_key=True, sa_type=sa.BigInteger)
    kind: str
    """NewInstance, NewSeries … as the archive names it."""
    resource: str
    """The archive's id of what changed."""
    study: str = ""
    """The study it belongs to; empty when it was gone before it could be asked for."""
    at: int = Field(sa_type=sa.BigInteger)


class Worker(SQLModel, table=True):
    """A worker process that lives as long as it keeps saying so; what it claimed is free when it does not."""

    id: str = Field(primary_key=True)
    until: int = Field(sa_type=sa.BigInteger)
    started: int = Field(sa_type=sa.BigInteger)


class DirtyStudy(SQLModel, table=True):
    """A study of the archive that must be looked at again. `mark` grows with every reason to look."""

    __table_args__ = (sa.Index("ix_dirty_due", "priority", "due"), sa.Index("ix_dirty_since", "since"))

    orthanc_id: str = Field(primary_key=True)
    mark: int = Field(default=1, sa_type=sa.BigInteger)
    priority: int = 0
    """0 for what has just happened, 1 for what can wait: a resync must not stand before a new image."""
    due: int = Field(sa_type=sa.BigInteger)
    latest: int = Field(default=0, sa_type=sa.BigInteger)
    """Later marks put `due` off, but never beyond this."""
    since: int = Field(default=0, sa_type=sa.BigInteger)
    """When the oldest mark that nobody has dealt with was made."""
    marked: int = Field(default=0, sa_type=sa.BigInteger)
    """When the last mark was made."""
    claimed_until: int = Field(default=0, sa_type=sa.BigInteger)
    worker: str = ""
    """Who has claimed it; the claim ends with that worker."""
    attempts: int = 0
    reason: str = ""


class SyncRequest(SQLModel, table=True):
    """Something a person asks of whoever keeps in step with the archive: handed over, done, answered."""

    id: int | None = Field(default=None, primary_key=True, sa_type=BigSerial)
    kind: str
    detail: dict[str, Any] = Field(default_factory=dict, sa_type=sa.JSON)
    asked: int = Field(sa_type=sa.BigInteger)
    taken: int | None = Field(default=None, sa_type=sa.BigInteger)
    worker: str = ""
    done: int | None = Field(default=None, sa_type=sa.BigInteger)
    answer: dict[str, Any] = Field(default_factory=dict, sa_type=sa.JSON)


class Study(SQLModel, table=True):
    """One study as the archive holds it, and the ImagingStudy that tells of it."""

    __table_args__ = (
        sa.Index("ix_study_uid", "study_uid"),
        sa.Index("ix_study_imaging", "imaging_study_id"),
        sa.Index("ix_study_changed", "complete", "changed"),
    )

    orthanc_id: str = Field(primary_key=True)
    study_uid: str
    imaging_study_id: str
    patient_id: str
    order_id: str | None = None
    digest: str
    """Hash over what the archive holds: equal means nothing to write."""
    changed: int = Field(sa_type=sa.BigInteger)
    complete: bool = False
    missing_since: int | None = Field(default=None, sa_type=sa.BigInteger)
    instances: int = 0
    series: int = 0
    last_update: str = ""
    """What the archive said of its last change when the study was last looked at."""
    accepted: int | None = Field(default=None, sa_type=sa.BigInteger)
    """When a person accepted that the study is gone; what is published later is back."""
    gone_reason: str = ""
    """Why it went, as far as that is known: a key of the delete policy."""


class Instance(SQLModel, table=True):
    """Membership: which instance belongs to which series of which study of the archive."""

    __table_args__ = (
        sa.Index("ix_instance_study", "study_orthanc_id", "series_uid", "sop_uid"),
        sa.Index("ix_instance_sop", "sop_uid"),
    )

    orthanc_id: str = Field(primary_key=True)
    study_orthanc_id: str
    series_uid: str
    sop_uid: str
    sop_class: str
    modality: str = ""
    file: str = ""
    """How the archive names the file: another name is another content."""


class Expected(SQLModel, table=True):
    """An instance that a modality said it made (MPPS): a study is complete when all of them are here."""

    study_uid: str = Field(primary_key=True)
    sop_uid: str = Field(primary_key=True)


class Stow(SQLModel, table=True):
    """Who stored an object through the gateway: written before it is forwarded to the archive."""

    sop_uid: str = Field(primary_key=True)
    study_uid: str
    grant_id: str | None = None
    client_id: str
    fhir_user: str | None = None
    at: int = Field(sa_type=sa.BigInteger)
    sha256: str = ""


class Evidence(SQLModel, table=True):
    """A structured report that has been read, and what came of it."""

    __table_args__ = (sa.Index("ix_evidence_study", "study_orthanc_id"),)

    sop_uid: str = Field(primary_key=True)
    imaging_study_id: str
    study_orthanc_id: str
    state: str
    """read | failed"""
    predecessors: list[Any] = Field(default_factory=list, sa_type=sa.JSON)
    """SOP Instance UIDs of the reports that this one replaces."""
    problems: list[Any] = Field(default_factory=list, sa_type=sa.JSON)
    at: int = Field(sa_type=sa.BigInteger)


class Client(SQLModel, table=True):
    """One registered SMART app."""

    id: str = Field(primary_key=True)
    name: str
    kind: str
    """public | symmetric | asymmetric"""
    secret_hash: str = ""
    redirect_uris: list[Any] = Field(default_factory=list, sa_type=sa.JSON)
    launch_uri: str = ""
    scope: str = ""
    jwks: dict[str, Any] | None = Field(default=None, sa_type=sa.JSON)
    jwks_uri: str = ""
    access: str = "all"
    """all | listed"""
    patients: list[Any] = Field(default_factory=list, sa_type=sa.JSON)
    studies: list[Any] = Field(default_factory=list, sa_type=sa.JSON)
    skip_consent: bool = False
    study_bound: bool = False
    """Gets scopes for one study only, whatever it asks for (the viewer)."""
    disabled: bool = False
    created: int = Field(default=0, sa_type=sa.BigInteger)


class UserAccount(SQLModel, table=True):
    """A local user of a small site or the demo."""

    id: str = Field(primary_key=True)
    """The login name."""
    name: str
    password_hash: str = ""
    role: str = ""
    """radiologist | technologist | operator | admin"""
    fhir_user: str = ""
    """Practitioner/…"""
    disabled: bool = False


class LoginSession(SQLModel, table=True):
    """A person logged in at the authorization server; the cookie is known by its hash only."""

    hash: str = Field(primary_key=True)
    user_id: str
    csrf: str
    created: int = Field(sa_type=sa.BigInteger)
    expires: int = Field(sa_type=sa.BigInteger)


class Consent(SQLModel, table=True):
    """Scopes a user has allowed an app before."""

    user_id: str = Field(primary_key=True)
    client_id: str = Field(primary_key=True)
    scope: str
    at: int = Field(sa_type=sa.BigInteger)


class Launch(SQLModel, table=True):
    """A launch context behind an opaque `launch` value or a one-time viewer handle, known by its hash."""

    hash: str = Field(primary_key=True)
    kind: str
    """launch | viewer | chosen"""
    client_id: str
    user_id: str | None = None
    fhir_user: str | None = None
    user_name: str = ""
    patient_id: str
    imaging_study_id: str | None = None
    study_uid: str | None = None
    order_id: str | None = None
    made_by: str = ""
    created: int = Field(sa_type=sa.BigInteger)
    expires: int = Field(sa_type=sa.BigInteger)
    used: int | None = Field(default=None, sa_type=sa.BigInteger)


class AuthorizationCode(SQLModel, table=True):
    """A code between /authorize and /token; single use, known by its hash."""

    hash: str = Field(primary_key=True)
    client_id: str
    redirect_uri: str
    challenge: str
    nonce: str = ""
    user_id: str | None = None
    auth_time: int = Field(default=0, sa_type=sa.BigInteger)
    grant: dict[str, Any] = Field(default_factory=dict, sa_type=sa.JSON)
    """What the token will point to: scope, patient_id, studies, context, fhir_user."""
    created: int = Field(sa_type=sa.BigInteger)
    expires: int = Field(sa_type=sa.BigInteger)
    used: int | None = Field(default=None, sa_type=sa.BigInteger)
    grant_id: str | None = None
    """The grant its first use made: revoked when the code comes again."""


class AccessGrant(SQLModel, table=True):
    """The unit of authorization: tokens and cookies only point here."""

    id: str = Field(primary_key=True)
    client_id: str
    user_id: str | None = None
    fhir_user: str | None = None
    user_name: str = ""
    patient_id: str | None = None
    studies: list[Any] | None = Field(default=None, sa_type=sa.JSON)
    """Study Instance UIDs the grant is bound to; null binds to none."""
    scope: str = ""
    context: dict[str, Any] = Field(default_factory=dict, sa_type=sa.JSON)
    session_hash: str | None = None
    """The login session an `online_access` grant ends with."""
    created: int = Field(sa_type=sa.BigInteger)
    expires: int = Field(sa_type=sa.BigInteger)
    revoked: int | None = Field(default=None, sa_type=sa.BigInteger)


class AccessToken(SQLModel, table=True):
    """An opaque token, known by its hash, that points to a grant."""

    __table_args__ = (sa.Index("ix_token_grant", "grant_id"),)

    hash: str = Field(primary_key=True)
    grant_id: str
    kind: str
    """access | refresh"""
    scope: str = ""
    """What a refresh narrowed this token to; empty means all of the grant."""
    created: int = Field(sa_type=sa.BigInteger)
    expires: int = Field(sa_type=sa.BigInteger)
    spent: int | None = Field(default=None, sa_type=sa.BigInteger)
    """A refresh token that was rotated: its second use revokes the grant."""


class ViewerSession(SQLModel, table=True):
    """One opened viewer: its path-scoped cookie (by hash) and the grant behind it."""

    id: str = Field(primary_key=True)
    cookie_hash: str
    grant_id: str
    study_uid: str
    imaging_study_id: str
    user_name: str = ""
    created: int = Field(sa_type=sa.BigInteger)
    seen: int = Field(sa_type=sa.BigInteger)
    expires: int = Field(sa_type=sa.BigInteger)
    ended: int | None = Field(default=None, sa_type=sa.BigInteger)


class SecretKey(SQLModel, table=True):
    """A key of this installation, wrapped by ISOCENTER_SECRET_KEY."""

    id: str = Field(primary_key=True)
    purpose: str
    wrapped: bytes
    public: dict[str, Any] = Field(default_factory=dict, sa_type=sa.JSON)
    created: int = Field(sa_type=sa.BigInteger)
    retired: int | None = Field(default=None, sa_type=sa.BigInteger)


class AssertionId(SQLModel, table=True):
    """A client assertion's `jti` that has been seen: the second one is a replay."""

    client_id: str = Field(primary_key=True)
    jti: str = Field(primary_key=True)
    expires: int = Field(sa_type=sa.BigInteger)


class AuditRow(SQLModel, table=True):
    """One neutral audit record; rendered as an AuditEvent when asked for."""

    __table_args__ = (
        sa.Index("ix_audit_time", "at", "id"),
        sa.Index(
            "ix_audit_patient",
            "patient_id",
            "at",
            "id",
            sqlite_where=sa.text("patient_id IS NOT NULL"),
            postgresql_where=sa.text("patient_id IS NOT NULL"),
        ),
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=BigSerial)
    at: int = Field(sa_type=sa.BigInteger)
    door: str
    """fhir | dicomweb | smart | viewer | dicom | workflow"""
    action: str
    outcome: str
    """allowed | denied | failed"""
    client_id: str = ""
    grant_id: str | None = None
    fhir_user: str | None = None
    patient_id: str | None = None
    study_uid: str | None = None
    target: str = ""
    request_id: str = ""
    detail: dict[str, Any] = Field(default_factory=dict, sa_type=sa.JSON)


class Lease(SQLModel, table=True):
    """Who may do a singleton's work, until when, and the fencing number its writes carry."""

    name: str = Field(primary_key=True)
    owner: str
    fence: int = Field(sa_type=sa.BigInteger)
    until: int = Field(sa_type=sa.BigInteger)


class MppsState(SQLModel, table=True):
    """A performed procedure step as the modality last told it (DICOM JSON)."""

    sop_uid: str = Field(primary_key=True)
    state: dict[str, Any] = Field(default_factory=dict, sa_type=sa.JSON)
    at: int = Field(sa_type=sa.BigInteger)


def core(model: type[SQLModel]) -> sa.Table:
    """The Core table of a declared model, for statements without the ORM."""
    return SQLModel.metadata.tables[model.__name__.lower()]


resource = core(Resource)
resource_version = core(ResourceVersion)
index_token = core(IndexToken)
index_reference = core(IndexReference)
index_date = core(IndexDate)
index_string = core(IndexString)
index_number = core(IndexNumber)
counter = core(Counter)
event = core(Event)
outbox = core(Outbox)
cursor = core(Cursor)
inbox = core(Inbox)
worker = core(Worker)
dirty_study = core(DirtyStudy)
sync_request = core(SyncRequest)
study = core(Study)
instance = core(Instance)
expected = core(Expected)
stow = core(Stow)
evidence = core(Evidence)
client = core(Client)
user_account = core(UserAccount)
login_session = core(LoginSession)
consent = core(Consent)
launch = core(Launch)
authorization_code = core(AuthorizationCode)
access_grant = core(AccessGrant)
access_token = core(AccessToken)
viewer_session = core(ViewerSession)
secret_key = core(SecretKey)
assertion_id = core(AssertionId)
audit_row = core(AuditRow)
lease = core(Lease)
mpps_state = core(MppsState)

INDEX_TABLES = (index_token, index_reference, index_date, index_string, index_number)

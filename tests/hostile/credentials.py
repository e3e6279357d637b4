"""Every kind of credential, made as the server makes them, and what each may touch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sqlalchemy.engine import Connection

from app.smart import clients, tokens
from app.smart.clients import Client
from app.viewer import sessions
from tests.hostile.wire import Header
from tests.hostile.world import ADA, BEN, GHOSTS, STUDIES, Person, Seeded, U, V, World, Y, Z

CLIENT = "hostile"
HOUR = 3600
Rights = Mapping[str, frozenset[Seeded]]
"""The studies by SMART verb; a verb that is not there is refused whatever the study."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What is sent, where, and what it opens. Without rights it is no credential at all."""

    name: str
    mount: bytes
    headers: tuple[Header, ...]
    rights: Rights | None = None
    knows: frozenset[str] | None = frozenset()
    """UIDs whose absence it may learn; None for any."""

    def covers(self, verb: str, study: Seeded) -> bool:
        return self.rights is not None and study in self.rights.get(verb, ())

    def hidden(self) -> list[Seeded]:
        """The studies of which it may see nothing whatever it asks."""
        opened: frozenset[Seeded] = frozenset().union(*(self.rights or {}).values())
        return [study for study in STUDIES if study not in opened]

    def strangers(self) -> set[Person]:
        """The patients of whom it may see nothing."""
        hidden = set(self.hidden())
        return {study.person for study in hidden} - {study.person for study in set(STUDIES) - hidden}


@dataclass(slots=True)
class Mint:
    """Makes grants, tokens and sessions."""

    world: World
    secrets: list[str] = field(default_factory=list[str])
    """Every token and cookie there is: none may be in a log."""

    def register(self) -> None:
        """The app that all of it is for."""
        registered = Client(CLIENT, "Hostile", "symmetric", scope="system/*.rs")
        self.world.store.transact(lambda tx: clients.ensure_client(tx, registered))

    def grant(
        self, scope: str, *, patient: Person | None = None, studies: list[str] | None = None, seconds: int = HOUR
    ) -> str:
        patient_id = self.patient_id(patient) if patient else None

        def work(connection: Connection) -> str:
            return tokens.open_grant(
                connection, client_id=CLIENT, user=None, patient_id=patient_id, studies=studies, scope=scope,
                context={}, lifetime=seconds,
            )  # fmt: skip

        return self.world.store.transact(work)

    def patient_id(self, person: Person) -> str:
        return next(held.patient_id for study, held in self.world.held.items() if study.person == person)

    def token(self, grant_id: str, *, seconds: int = HOUR) -> str:
        made = self.world.store.transact(lambda tx: tokens.issue(tx, grant_id, seconds=seconds))
        self.secrets.append(made["access_token"])
        return made["access_token"]

    def session(self, grant_id: str, study: Seeded) -> tuple[str, str]:
        held = self.world.of(study)

        def work(connection: Connection) -> tuple[str, str]:
            return sessions.enter(
                connection, grant_id=grant_id, study_uid=study.uid, imaging_study_id=held.imaging_study_id,
                user_name="Rita",
            )  # fmt: skip

        session_id, cookie = self.world.store.transact(work)
        self.secrets.append(cookie)
        return session_id, cookie

    def cookie(self, value: str) -> Header:
        return b"Cookie", f"{sessions.cookie_name(self.world.settings)}={value}".encode()


def bearer(token: str, scheme: str = "Bearer") -> Header:
    return b"Authorization", f"{scheme} {token}".encode()


def reading(*studies: Seeded) -> Rights:
    return {"r": frozenset(studies), "s": frozenset(studies)}


def minted(world: World) -> tuple[list[Credential], Mint]:
    """All of them."""
    mint = Mint(world)
    mint.register()
    return [*_none(mint), *_bound(mint), *_cookies(mint)], mint


def _none(mint: Mint) -> Iterator[Credential]:
    """What must be taken for nothing."""
    root = b"/dicom-web"
    grant = mint.grant("system/ImagingStudy.rus offline_access")
    good = mint.token(grant)
    yield Credential("none", root, ())
    yield Credential("garbage", root, (bearer("garbage"),))
    yield Credential("bytes that are no text", root, ((b"Authorization", b"Bearer \xff\xfe\x80"),))
    yield Credential("an empty bearer", root, ((b"Authorization", b"Bearer "),))
    yield Credential("another scheme", root, (bearer("dXNlcjpwYXNz", "Basic"),))
    yield Credential("a good token under another scheme", root, (bearer(good, "Token"),))
    yield Credential("a good token in another header", root, ((b"X-Access-Token", good.encode()),))
    yield Credential("two tokens in one header", root, (bearer(f"{good}, Bearer {good}"),))
    yield Credential("expired", root, (bearer(mint.token(grant, seconds=0)),))
    refresh = mint.world.store.transact(lambda tx: tokens.issue(tx, grant, seconds=HOUR))["refresh_token"]
    mint.secrets.append(refresh)
    yield Credential("a refresh token", root, (bearer(refresh),))
    gone = mint.grant("system/ImagingStudy.rus")
    revoked = mint.token(gone)
    mint.world.store.transact(lambda tx: tokens.revoke_grant(tx, gone))
    yield Credential("revoked", root, (bearer(revoked),))


def _bound(mint: Mint) -> Iterator[Credential]:
    """Tokens that open something, or nothing of ours."""
    root = b"/dicom-web"
    read, one = "patient/ImagingStudy.rs", [U.uid]
    oid = "identifier=urn:dicom:uid|urn:oid:"
    held = mint.world.of(U)

    def made(name: str, grant: str, rights: Rights, knows: frozenset[str] | None = frozenset()) -> Credential:
        return Credential(name, root, (bearer(mint.token(grant)),), rights, knows)

    own = frozenset(one)
    yield made("one study", mint.grant(read, patient=ADA, studies=one), reading(U), own)
    yield made("one study of a user", mint.grant("user/ImagingStudy.rs", studies=one), reading(U), own)
    yield made("one study by identifier", mint.grant(f"{read}?{oid}{U.uid}", patient=ADA), reading(U))
    yield made("one study by id", mint.grant(f"{read}?_id={held.imaging_study_id}", patient=ADA), reading(U))
    yield made("one patient", mint.grant(read, patient=ADA), reading(U, V))
    yield made("everything of one patient", mint.grant("patient/*.rs", patient=ADA), reading(U, V))
    yield made("the other patient", mint.grant(read, patient=BEN), reading(Z, Y))
    # Such a grant names studies that are not its patient's: it may know that they are not, whether there or not.
    wrong = [study.uid for hidden in (Z, Y) for study in (hidden, GHOSTS[hidden])]
    mixed = mint.grant(read, patient=ADA, studies=wrong)
    yield made("a patient's grant for another's studies", mixed, reading(), frozenset(wrong))
    yield made("no study", mint.grant(read, patient=ADA, studies=[]), reading())
    yield made("no imaging", mint.grant("patient/Observation.rs patient/Patient.rs", patient=ADA), {})
    yield made("rights but no scopes", mint.grant("openid fhirUser isocenter/launch isocenter/sign"), {})
    only = frozenset({U})
    yield made("without search", mint.grant("patient/ImagingStudy.r", patient=ADA, studies=one), {"r": only}, own)
    yield made("search only", mint.grant("patient/ImagingStudy.s", patient=ADA, studies=one), {"s": only}, own)
    writing = {"r": only, "s": only, "u": only}
    yield made("a writer", mint.grant("patient/ImagingStudy.rus", patient=ADA, studies=one), writing, own)
    yield made("a writer only", mint.grant("patient/ImagingStudy.u", patient=ADA, studies=one), {"u": only}, own)
    named = mint.grant(f"system/ImagingStudy.rs?{oid}{Z.uid}")
    yield made("one study of a system", named, reading(Z))
    yield made("system", mint.grant("system/ImagingStudy.rs"), reading(*STUDIES), None)


def _cookies(mint: Mint) -> Iterator[Credential]:
    """Viewer sessions: of this study, of another, ended, and together with tokens."""
    read = "patient/ImagingStudy.rs"
    grant = mint.grant(read, patient=ADA, studies=[U.uid])
    here, cookie = mint.session(grant, U)
    away, others = mint.session(mint.grant(read, patient=BEN, studies=[Z.uid]), Z)
    mount = f"/v/{here}/dicom-web".encode()
    other = bearer(mint.token(mint.grant(read, patient=BEN, studies=[Z.uid])))
    own, its = frozenset({U.uid}), frozenset({Z.uid})
    yield Credential("a viewer's cookie", mount, (mint.cookie(cookie),), reading(U), own)
    yield Credential("another viewer's cookie", mount, (mint.cookie(others),))
    yield Credential("a viewer's cookie at another viewer", f"/v/{away}/dicom-web".encode(), (mint.cookie(cookie),))
    yield Credential("a viewer's cookie at the address of apps", b"/dicom-web", (mint.cookie(cookie),))
    yield Credential("no cookie", mount, ())
    yield Credential("a cookie and another's token", mount, (mint.cookie(cookie), other), reading(Z), its)
    yield Credential("a cookie and a bad token", mount, (mint.cookie(cookie), bearer("garbage")))
    yield Credential("a cookie and another scheme", mount, (mint.cookie(cookie), bearer("dTpw", "Basic")))
    yield Credential("a token at a viewer", mount, (other,), reading(Z), its)
    ended, last = mint.session(done := mint.grant(read, patient=ADA, studies=[U.uid]), U)
    mint.world.store.transact(lambda tx: tokens.revoke_grant(tx, done))
    yield Credential("an ended viewer's cookie", f"/v/{ended}/dicom-web".encode(), (mint.cookie(last),))

"""Every route, every credential, every trick, and the judge that looks for what should not have been told.

The oracle: an answer to a credential that does not cover a study holds none of its words, UIDs, pixels or values, and
is the same, in status, headers and body, as the answer about a study that does not exist.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import cycle
from urllib.parse import unquote_to_bytes

from tests.hostile.credentials import Credential
from tests.hostile.routes import Shape, shapes
from tests.hostile.tricks import Place, Trick, tricks
from tests.hostile.wire import BOUNDARY, Answer, Ask, Wire
from tests.hostile.world import GHOSTS, STUDIES, Seeded, U, World, Z, objects, standing_alone
from tests.orthanc.phantoms import part10

CHANGING = {b"date", b"x-request-id", b"connection", b"keep-alive"}
Exchange = tuple[Ask, Answer, Seeded]
"""A request, its answer, and the study it was about."""
NOBODYS = 0.3
"""A sample plays its tricks rather with credentials that open something."""
PART_OF_HASH = 40
"""Answers shorter than this are not looked for by their hash: they say nothing."""


@dataclass(slots=True)
class Report:
    """What was asked and what is wrong."""

    requests: int = 0
    pairs: int = 0
    tricks: set[str] = field(default_factory=set[str])
    statuses: dict[int, int] = field(default_factory=dict[int, int])
    faults: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        told = ", ".join(f"{count} × {status}" for status, count in sorted(self.statuses.items()))
        return (
            f"{self.requests} hostile requests, {self.pairs} pairs of route and credential, "
            f"{len(self.tricks)} tricks: {told}; {len(self.faults)} faults"
        )


@dataclass(slots=True)
class Suite:
    """One campaign against one address."""

    world: World
    wire: Wire
    credentials: list[Credential]
    chance: random.Random = field(default_factory=lambda: random.Random(5))
    report: Report = field(default_factory=Report)
    treasure: dict[Seeded, set[bytes]] = field(default_factory=dict[Seeded, set[bytes]])
    tags: dict[Seeded, list[tuple[Shape, bytes]]] = field(default_factory=dict[Seeded, list[tuple[Shape, bytes]]])
    forbidden: list[bytes] = field(default_factory=list[bytes])
    """What no answer to anybody may hold."""

    def ask(self, asked: Ask, *, alone: bool = False) -> Answer:
        answer = self.wire.ask(asked, alone=alone)
        self.report.requests += 1
        self.report.statuses[answer.status] = self.report.statuses.get(answer.status, 0) + 1
        return answer

    # --- what there is to be stolen ------------------------------------------------------------------------------

    def harvest(self, by: Credential) -> None:
        """Everything that an honest caller who may see all gets: each route must give something."""
        for study in STUDIES:
            kept, tags = self.treasure.setdefault(study, set()), self.tags.setdefault(study, [])
            for shape in _honest():
                if not shape.names_a_study:
                    continue
                answer = self.ask(Place(shape, by.mount, by.headers, study, study).ask())
                if answer.status != 200:
                    self.report.faults.append(f"{shape} gives {answer.status} to {by.name}")
                kept |= {_digest(part) for part in answer.parts() if len(part) >= PART_OF_HASH}
                tags += [(shape, tag) for tag in [answer.header(b"etag")] if tag]
        for study in STUDIES:
            others = set().union(*(self.treasure[other] for other in STUDIES if other is not study))
            if self.treasure[study] & others:
                self.report.faults.append(f"{study.word} and another study give the same bytes: nothing would be found")

    # --- the judge -----------------------------------------------------------------------------------------------

    def leaks(self, credential: Credential, asked: Ask, answer: Answer) -> list[str]:
        """What the answer tells that this credential may not know and did not say itself."""
        sent = _spoken(asked)
        told = b"\n".join([*(b"%s: %s" % header for header in answer.headers), answer.body, *answer.parts()])
        found = [f"says {word!r}" for word in self.forbidden if word in told]
        digests = {_digest(part) for part in answer.parts() if len(part) >= PART_OF_HASH}
        for study in credential.hidden():
            unsaid = (secret for secret in study.secrets() if not standing_alone(secret).search(sent))
            found += [f"says {secret.decode()}" for secret in unsaid if standing_alone(secret).search(told)]
            if digests & self.treasure.get(study, set()):
                found.append(f"gives bytes of {study.word}")
        for person in credential.strangers():
            words = (word.encode() for word in (person.word, person.mrn))
            found += [f"names {word.decode()}" for word in words if word in told and word not in sent]
        return found

    def judge(self, credential: Credential, what: str, asked: Ask, answer: Answer) -> None:
        """Note what is wrong with one answer."""
        for fault in self.leaks(credential, asked, answer):
            self.fault(credential, what, asked, fault)
        if answer.status >= 500:
            self.fault(credential, what, asked, f"is answered {answer.status}")
        if not answer.whole:
            self.fault(credential, what, asked, "is broken off")

    def fault(self, credential: Credential, what: str, asked: Ask, fault: str) -> None:
        line = f"{what} by {credential.name}: {fault} [{asked.method.decode()} {asked.target[:200]!r}]"
        self.report.faults.append(line)

    # --- each pair of route and credential -----------------------------------------------------------------------

    def pairs(self) -> Iterator[tuple[Shape, Credential]]:
        for shape in shapes():
            for credential in self.credentials:
                yield shape, credential

    def honest(self, shape: Shape, credential: Credential, chance: random.Random | None = None) -> None:
        """The plain request for each study and for one that is not there: the right status, and nothing of others.

        With `chance`, for two of the studies that are opened or not alike, one is enough.
        """
        self.report.pairs += 1
        if not shape.names_a_study:
            asked = Place(shape, credential.mount, credential.headers, U, Z, _body(shape, Z)).ask()
            answer = self.ask(asked)
            self.judge(credential, str(shape), asked, answer)
            if problem := wrong_list(shape, credential, answer):
                self.fault(credential, str(shape), asked, problem)
            return
        for study in _some(shape.method, credential, chance):
            place = Place(shape, credential.mount, credential.headers, study, study, _body(shape, study))
            asked = place.ask()
            answer = self.ask(asked)
            self.judge(credential, str(shape), asked, answer)
            if problem := wrong_status(shape, credential, study, answer.status):
                self.fault(credential, str(shape), asked, problem)
            known = chance is not None and shape.method != "GET" and credential.rights is None
            if not known and not credential.covers(shape.verb, study) and credential.knows is not None:
                ghost = GHOSTS[study]
                unknown = Place(shape, credential.mount, credential.headers, ghost, ghost, place.body).ask()
                self.compare(credential, str(shape), (asked, answer, study), (unknown, self.ask(unknown), ghost))

    def compare(self, credential: Credential, what: str, known: Exchange, unknown: Exchange) -> None:
        """The answer about what exists must be the answer about what does not, but for the UIDs said by the caller."""
        said = (known[2], unknown[2])
        if plain(known[1], said) != plain(unknown[1], said):
            one, other = (f"{each[1].status} {each[1].body[:300]!r}" for each in (known, unknown))
            self.fault(credential, what, known[0], f"answers {one}, but of the unknown study {other}")

    # --- tricks --------------------------------------------------------------------------------------------------

    def attack(self, rounds: int | None) -> None:
        """`rounds` tricks at each pair, taken in turn from a shuffled pack; None plays them all."""
        for shape in shapes():
            if rounds is not None and shape.method not in {"GET", "POST"}:
                # Other methods are tricks themselves.
                continue
            pack = tricks(shape)
            self.chance.shuffle(pack)
            deck = cycle(pack)
            for credential in self.credentials:
                if not credential.hidden() or (
                    rounds is not None and credential.rights is None and self.chance.random() > NOBODYS
                ):
                    continue
                for _ in range(len(pack) if rounds is None else rounds):
                    self.play(shape, credential, *next(deck))

    def play(self, shape: Shape, credential: Credential, name: str, trick: Trick) -> None:
        """One trick for a hidden study, and the same for one that does not exist."""
        hidden = credential.hidden()
        opened = [study for study in STUDIES if study not in hidden] or [U]
        wanted = self.chance.choice([study for study in hidden if study not in opened] or hidden)
        self.report.tricks.add(name)
        answers: list[Exchange] = []
        # The patient's own number and name may find their own study: only the study is another then.
        stranger = wanted.person in credential.strangers()
        ghost = GHOSTS[wanted] if stranger else replace(GHOSTS[wanted], person=wanted.person)
        for other in (wanted, ghost):
            body = _body(shape, wanted)
            asked = trick(Place(shape, credential.mount, credential.headers, opened[0], other, body))
            answer = self.ask(asked, alone=_breaks_framing(asked))
            self.judge(credential, name, asked, answer)
            answers.append((asked, answer, other))
        self.compare(credential, name, *answers)

    def conditions(self) -> None:
        """The true ETags of a study, guessed or stolen, tell nothing to whom it is hidden."""
        for credential in self.credentials:
            for study in credential.hidden():
                header = self.chance.choice([b"If-None-Match", b"If-Match", b"If-Range"])
                for shape, tag in self.chance.sample(self.tags[study], 3):
                    place = Place(shape, credential.mount, credential.headers, study, study)
                    asked = place.ask(None, "", (header, tag), (b"Range", b"bytes=0-9"))
                    answer = self.ask(asked)
                    self.judge(credential, f"{header.decode()} of another", asked, answer)
                    if problem := wrong_status(shape, credential, study, answer.status):
                        self.fault(credential, f"{header.decode()} of another", asked, problem)


def wrong_status(shape: Shape, credential: Credential, study: Seeded, status: int) -> str | None:
    """What the status should have been, unless it was."""
    if shape.method == "OPTIONS":
        # A preflight carries no credential, so it can depend on none.
        return None if status in {200, 204, 401, 403, 405} else f"is {status}, but a preflight"
    if credential.rights is None:
        expected = {401}
    elif shape.verb not in credential.rights or not credential.covers(shape.verb, study):
        # A right kind of grant that is bound to a study may be told that this study is not its patient's.
        known = credential.knows is not None and study.uid in credential.knows and shape.verb in credential.rights
        expected = {403, 404} if known else {403}
    else:
        # What is stored is there already, or of a kind that is not taken.
        expected = {409} if shape.resource == "store" else {200}
    if credential.mount != b"/dicom-web" and shape.method == "POST" and credential.rights is not None:
        # A cookie needs the page's own header to write.
        expected |= {403}
    return None if status in expected else f"is answered {status}, not {sorted(expected)}"


def wrong_list(shape: Shape, credential: Credential, answer: Answer) -> str | None:
    """A search at the root finds exactly what the credential covers."""
    if shape.method == "OPTIONS" or shape.resource not in {"search", "store"}:
        return None
    if credential.rights is None:
        return None if answer.status == 401 else f"is answered {answer.status}, not 401"
    if shape.verb not in credential.rights:
        return None if answer.status == 403 else f"is answered {answer.status}, not 403"
    if shape.resource == "store":
        return None if answer.status in {403, 409} else f"is answered {answer.status}"
    if answer.status != 200:
        return f"is answered {answer.status}, not 200"
    found = {study for study in STUDIES if standing_alone(study.uid.encode()).search(answer.decoded())}
    covered = credential.rights[shape.verb]
    return None if found == covered or shape.method == "HEAD" else f"finds {sorted(one.word for one in found)}"


def plain(answer: Answer, said: Iterable[Seeded]) -> tuple[int, tuple[tuple[bytes, bytes], ...], bytes]:
    """An answer without what differs each time, and without the UIDs that were said."""
    mark = BOUNDARY.search(answer.header(b"content-type"))
    body = answer.body.replace(answer.header(b"x-request-id") or b"-", b"")
    for study in said:
        body = body.replace(study.uid.encode(), b"UID")
    headers = [header for header in answer.headers if header[0] not in CHANGING]
    if mark is not None:
        body = body.replace(mark[1], b"mark")
        headers = [(name, value.replace(mark[1], b"mark")) for name, value in headers]
    return answer.status, tuple(sorted(headers)), body


def _some(method: str, credential: Credential, chance: random.Random | None) -> list[Seeded]:
    hidden = credential.hidden()
    opened = [study for study in STUDIES if study not in hidden]
    if chance is None:
        return [*opened, *hidden]
    if method != "GET":
        return [chance.choice(hidden or opened)]
    return [chance.choice(studies) for studies in (opened, hidden) if studies]


def _honest() -> Iterable[Shape]:
    return [shape for shape in shapes() if shape.method == "GET"]


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _spoken(asked: Ask) -> bytes:
    """What the caller said itself, in every way it can be read."""
    sent = asked.sent()
    once = unquote_to_bytes(sent)
    return b"\n".join((sent, once, unquote_to_bytes(once)))


def _body(shape: Shape, study: Seeded) -> bytes:
    if shape.method not in {"POST", "PUT", "PATCH"}:
        return b""
    content = part10(next(objects(study)))
    head = b"--mark\r\nContent-Type: application/dicom\r\n\r\n"
    return head + content + b"\r\n--mark--\r\n"


def _breaks_framing(asked: Ask) -> bool:
    """Requests after which server and client may no longer agree where the next one begins."""
    strange = {b"connection", b"upgrade", b"expect", b"te", b"x-a", b"host"}
    return (
        any(name.lower() in strange for name, _ in asked.headers)
        or asked.method in {b"CONNECT", b"TRACE"}
        or asked.method.islower()
    )

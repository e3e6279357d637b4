"""Ways to ask for another study while looking as if one asked for one's own (GW01 to GW20).

Each trick makes one request out of an honest one. It is told `other` twice: once as a study that exists and once as
one that does not, and the two answers must be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from urllib.parse import quote

from tests.hostile.routes import Shape
from tests.hostile.wire import Ask, Header
from tests.hostile.world import Seeded

STOW = (b"Content-Type", b'multipart/related; type="application/dicom"; boundary=mark')
METHODS = (b"HEAD", b"OPTIONS", b"TRACE", b"PROPFIND", b"CONNECT", b"QUERY", b"PUT", b"DELETE", b"PATCH", b"POST")
Trick = Callable[["Place"], Ask]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a trick starts: a shape of address, the caller's own study, and the one that is wanted."""

    shape: Shape
    mount: bytes
    headers: tuple[Header, ...]
    own: Seeded
    other: Seeded
    body: bytes = b""

    def ask(self, path: str | None = None, query: str = "", *headers: Header) -> Ask:
        """The request for the other study, or at another path below the mount."""
        address = self.shape.at(self.other) if path is None else path
        written = (STOW,) if self.body else ()
        target = self.mount + address.encode("latin-1") + (b"?" + query.encode("latin-1") if query else b"")
        return Ask(self.shape.method.encode(), target, (*self.headers, *written, *headers), self.body)

    def mine(self, query: str = "", *headers: Header) -> Ask:
        """The request for the caller's own study."""
        return self.ask(self.shape.at(self.own), query, *headers)


# What one segment becomes: 0 is the own UID, 1 the other's.
FORMS = (
    "{0}%2f..%2f{1}", "{0}/../{1}", "{0}/..%2f{1}", "%2e%2e/{1}", "../{1}", "{0}%2F{1}", "{0}%5c{1}", "{0}\\{1}",
    "{0}%00{1}", "{0}%00", "{1}%00", "{0};x={1}", "{1};x=1", "/{1}", "{0}//{1}", "%252e%252e%252f{1}",
    "%25%32%65%25%32%65/{1}", "{1}.", ".{1}", "{0}..{1}", "{0}%0d%0a{1}", "{1}%20", "{1}%09", "{1}+", "%20{1}",
    "{0},{1}", "{0}*", "*", "{0}&StudyInstanceUID={1}", "{0}?/{1}", "{0}%3f{1}", "{0}#{1}", "{0}%23{1}", "{0}/./{1}",
    "x{1}", "{1}x", "0x{1}", "{0}|{1}", "{0}'--", "{0}%27%20OR%201=1", "{0}{{{1}}}", "{0}$({1})", "{0}@{1}",
    "{0}:{1}", "{1}%EF%BC%8E", "\xb2{1}", "%C0%AE%C0%AE/{1}", "%u002e%u002e/{1}", "{1}%2e", "{1}~1",
    "{1}%E2%80%8B", "{0}%u002f{1}", "%{1}", "{1}%", "-{1}", "+{1}", "{0}" + "1" * 64, "%FF{1}", "[{1}]", "({1})",
    "{0}=={1}", "~{1}",
)  # fmt: skip
# One segment of digits becomes this other spelling of the same number.
DIGITS = (lambda uid: uid.replace("1", "\uff11"), lambda uid: uid.replace("2", "\u0662"), lambda uid: f"0{uid}")
MOUNTS = (
    b"//dicom-web", b"/./dicom-web", b"/x/../dicom-web", b"/%64icom-web", b"/DICOM-WEB", b"/dicom-web/dicom-web",
    b"/dicom-web/.", b"/dicom-web/..;/dicom-web", b"/dicom-web%2f", b"/dicom-web;x=1", b"\\dicom-web",
    b"/dicom-web//", b"/v/x/dicom-web", b"/v/../dicom-web", b"/v/%2e%2e/dicom-web", b"/v//dicom-web",
    b"/v/dicom-web/dicom-web", b"/orthanc/dicom-web", b"/wado", b"/dicom-web/wado", b"/fhir/../dicom-web",
    b"/fhir/dicom-web", b"/ohif/../dicom-web", b"/health/../dicom-web", b"/dicom-web/../orthanc",
    b"/dicom-web?/dicom-web", b"/dicom-web%00", b"/dicom-web/%2e",
)  # fmt: skip
TAILS = (
    "/", "//", "/.", "/..", "/%2e", "%00", ";", ";x=1", ".", "%20", "/metadata/", "/archive", "/media", "%2fmetadata",
    "/bulk/0", "/..%2f", "\\", "/*", "/frames/1%2f..", "/../../../instances", "/file", "/attachments",
)  # fmt: skip
SPOOFS = (
    (b"X-Forwarded-Host", b"evil.example"), (b"X-Forwarded-For", b"127.0.0.1"), (b"X-Forwarded-Prefix", b"/orthanc"),
    (b"X-Forwarded-Proto", b"https"), (b"Forwarded", b"for=127.0.0.1;host=evil.example;proto=https"),
    (b"X-Real-IP", b"127.0.0.1"), (b"X-Remote-User", b"admin"), (b"X-Forwarded-User", b"admin"),
    (b"X-Forwarded-Access-Token", b"x"), (b"X-Isocenter-Viewer", b"1"), (b"X-HTTP-Method-Override", b"DELETE"),
    (b"X-Method-Override", b"PUT"), (b"X-HTTP-Method", b"PATCH"), (b"Range", b"bytes=0-10"), (b"Range", b"bytes=-5"),
    (b"Range", b"bytes=0-0,2-3"), (b"If-Match", b"*"), (b"If-None-Match", b"*"), (b"If-None-Match", b'"0", W/"1"'),
    (b"If-Modified-Since", b"Mon, 01 Jan 2001 00:00:00 GMT"),
    (b"If-Unmodified-Since", b"Mon, 01 Jan 2001 00:00:00 GMT"), (b"If-Range", b'"x"'),
    (b"Accept-Encoding", b"gzip, br, deflate"), (b"Accept", b"application/dicom+xml"),
    (b"Accept", b"application/zip"), (b"Accept", b"text/html, */*;q=0.1"), (b"Accept", b"*/*;q=0"), (b"Accept", b"a"),
    (b"Accept", b"multipart/related; type=application/dicom; transfer-syntax=*"), (b"Accept", b"image/gif"),
    (b"Accept", b'multipart/related; type="application/octet-stream"; transfer-syntax=*'), (b"Accept", b"image/png"),
    (b"Accept", b"application/dicom+json"), (b"Accept", b"\xff\xfe"), (b"TE", b"trailers"),
    (b"Expect", b"100-continue"), (b"Upgrade", b"h2c"), (b"Origin", b"https://evil.example"),
    (b"Sec-Fetch-Site", b"cross-site"), (b"Cache-Control", b"only-if-cached"), (b"Pragma", b"no-cache"),
    (b"Max-Forwards", b"0"), (b"Via", b"1.1 x"), (b"X-Request-Id", b"the-callers"),
    (b"Prefer", b"return=representation"), (b"Connection", b"Authorization, Cookie"),
)  # fmt: skip
# Addresses in headers that some servers believe in; 1 is the other's address.
BELIEVED = (
    b"X-Original-URL", b"X-Rewrite-URL", b"X-Original-URI", b"X-Accel-Redirect", b"X-Sendfile", b"Referer",
    b"X-Forwarded-Uri", b"Content-Location", b"X-Orthanc-Path", b"Destination", b"Location",
)  # fmt: skip
SEARCHED = (
    "StudyInstanceUID={u}", "0020000D={u}", "0020000d={u}", "studyinstanceuid={u}", "StudyInstanceUID={o},{u}",
    "StudyInstanceUID={o}%5C{u}", "StudyInstanceUID={o}&StudyInstanceUID={u}", "StudyInstanceUID=*",
    "StudyInstanceUID=", "StudyInstanceUID=%2A", "StudyInstanceUID={o}*", "StudyInstanceUID[]={u}", "0020%2C000D={u}",
    "0020,000D={u}", "StudyInstance%55ID={u}", "StudyInstanceUID={u}%00", "SeriesInstanceUID={u}.1", "0020000E={u}.1",
    "SOPInstanceUID={u}.1.1", "00080018={u}.1.1", "PatientID={m}", "00100020={m}", "PatientID=*", "PatientID=",
    "PatientName=*", "PatientName={n}*", "PatientName=%2A", "AccessionNumber=A{w}", "StudyDescription=*{w}*",
    "StudyDescription=*", "StudyID=S{w}", "Modality=CT", "ReferringPhysicianName={w}*", "SeriesDescription=*{w}*",
    "BodyPartExamined={w}", "ModalitiesInStudy=CT", "StudyDate=*", "StudyDate=19000101-", "includefield=all",
    "includefield=00100010,00100020,00101000", "includefield=00201200",
    "includefield=00201200&includefield=00201202&includefield=00201204", "limit=1000000", "limit=0", "limit=-1",
    "limit=1&limit=1000", "offset=0", "offset=1", "offset=2", "offset=-1", "limit=1e9",
    "fuzzymatching=true&PatientName={n}", "fuzzymatching=true&PatientName=fosa",
    "PatientID={m}&includefield=all&limit=100", "StudyInstanceUID={u}&includefield=all", "q={u}", "query=*",
    "_method=GET", "method=POST", "StudyInstanceUID={u};StudyInstanceUID={o}", "00081111.0020000D={u}",
    "00081111.00081155={u}", "ReferencedStudySequence.ReferencedSOPInstanceUID={u}",
    "RequestAttributesSequence.AccessionNumber=A{w}", "OtherPatientIDs={m}", "00101000={m}", "PatientID={m}%20",
    "PatientID=%E2%80%AE{m}", "%50atientID={m}", "PatientID=?*", "IssuerOfPatientID=*",
    "emptyvaluematching=true&PatientID=", "multiplevaluematching=true&StudyInstanceUID={o}%5C{u}",
    "TimezoneOffsetFromUTC=*", "InstanceNumber=1", "NumberOfStudyRelatedInstances=*", "StudyTime=-", "00080061=CT",
)  # fmt: skip
ASKED = (
    "studyUID={u}", "StudyInstanceUID={u}", "seriesUID={u}.1", "objectUID={u}.1.1",
    "requestType=WADO&objectUID={u}.1.1", "accept=application/dicom", "accept=*/*", "contentType=application/dicom",
    "charset=utf-8", "viewport=8,8", "viewport=8,8,0,0,1,1", "window=1,2,linear", "quality=1", "annotation=patient",
    "annotation=patient,technique", "iccprofile=no", "presentationUID={u}.1.1", "frameNumber=1", "frame=2",
    "transferSyntax=*", "anonymize=yes", "limit=1", "includefield=all", "0020000D={u}", "path=/studies/{u}",
    "url=/instances", "../{u}", "format=dicom", "_method=DELETE", "token=x", "session=x", "debug=1", "q=%00", "%ff",
    "a=" + "x" * 3000, "&&&&", "=", "viewport=%00",
)  # fmt: skip


def tricks(shape: Shape) -> list[tuple[str, Trick]]:
    """Every trick that makes sense at this address, with a name for reports."""
    found = [*_headers(), *_mounts(), *_targets(), *_queries(shape)]
    return [*found, *_spellings(shape)] if shape.names_a_study else found


def _spellings(shape: Shape) -> Iterator[tuple[str, Trick]]:
    for at in ("study", "series", "instance"):
        if f"{{{at}}}" in shape.template:
            for form in FORMS:
                yield f"{at} as {form}", _spelt(at, form)
            for number, digits in enumerate(DIGITS):
                yield f"{at} in other digits {number}", _digits(at, digits)
            if at != "study":
                yield f"own study, other {at}", _child(at)
    for tail in TAILS:
        yield f"tail {tail}", lambda place, tail=tail: place.ask(place.shape.at(place.other) + tail)
        yield (
            f"own tail {tail}",
            lambda place, tail=tail: place.ask(f"{place.shape.at(place.own)}{tail}/studies/{place.other.uid}"),
        )


def _segments(place: Place) -> dict[str, str]:
    own = place.own
    return {"study": own.uid, "series": own.series(), "instance": own.instance()}


def _uid(study: Seeded, level: str) -> str:
    return {"study": study.uid, "series": study.series(), "instance": study.instance()}[level]


def _spelt(at: str, form: str) -> Trick:
    def made(place: Place) -> Ask:
        spelt = form.format(_uid(place.own, at), _uid(place.other, at))
        return place.ask(place.shape.template.format(**(_segments(place) | {at: spelt})))

    return made


def _digits(at: str, change: Callable[[str], str]) -> Trick:
    def made(place: Place) -> Ask:
        # UTF-8 as it is, byte by byte.
        spelt = change(_uid(place.other, at)).encode().decode("latin-1")
        return place.ask(place.shape.template.format(**(_segments(place) | {at: spelt})))

    return made


def _child(level: str) -> Trick:
    def made(place: Place) -> Ask:
        series = place.other if level == "series" else place.own
        return place.ask(place.shape.at(place.own, series, place.other))

    return made


def _headers() -> Iterator[tuple[str, Trick]]:
    for name, value in SPOOFS:
        label = f"{name.decode()}: {value!r}"
        yield label, lambda place, name=name, value=value: place.ask(None, "", (name, value))
        yield f"own, {label}", lambda place, name=name, value=value: place.mine("", (name, value))
    for name in BELIEVED:
        yield (
            f"own, {name.decode()} of the other",
            lambda place, name=name: place.mine("", (name, place.mount + place.shape.at(place.other).encode())),
        )
    yield "two Host headers", lambda place: place.ask(None, "", (b"Host", b"evil.example"))
    yield "a second Authorization", lambda place: place.ask(None, "", (b"Authorization", b"Bearer other"))
    yield "a second Cookie", lambda place: place.ask(None, "", (b"Cookie", b"isocenter=1; viewer=2"))
    yield "a folded header", lambda place: place.ask(None, "", (b"X-A", b"1\r\n Authorization: Bearer x"))
    yield "another Host", lambda place: replace(place.ask(), host=b"orthanc.internal:8042")


def _mounts() -> Iterator[tuple[str, Trick]]:
    for mount in MOUNTS:
        yield (
            f"below {mount!r}",
            lambda place, mount=mount: replace(place.ask(), target=mount + place.shape.at(place.other).encode()),
        )


def _targets() -> Iterator[tuple[str, Trick]]:
    for base in (b"http://localhost", b"http://evil.example", b"http://localhost:1/x", b"//evil.example", b"http:"):
        yield f"absolute {base!r}", lambda place, base=base: replace(place.ask(), target=base + place.ask().target)
    yield "no leading slash", lambda place: replace(place.ask(), target=place.ask().target[1:])
    yield "a fragment", lambda place: replace(place.mine(), target=place.mine().target + b"#" + place.ask().target)
    yield "a tab in the target", lambda place: replace(place.ask(), target=place.ask().target + b"\t")
    yield "a very long target", lambda place: place.ask(place.shape.at(place.other) + "/" + "1" * 9000)
    yield "lower-case method", lambda place: replace(place.ask(), method=place.shape.method.lower().encode())
    for method in METHODS:
        yield f"method {method.decode()}", lambda place, method=method: replace(place.ask(), method=method)
    yield (
        "a preflight",
        lambda place: replace(
            place.ask(None, "", (b"Origin", b"https://evil.example"), (b"Access-Control-Request-Method", b"GET")),
            method=b"OPTIONS",
        ),
    )
    yield "a GET with a body", lambda place: replace(place.ask(), body=b"StudyInstanceUID=" + place.other.uid.encode())


def _queries(shape: Shape) -> Iterator[tuple[str, Trick]]:
    for pattern in SEARCHED if shape.resource == "search" else ASKED:
        yield f"query {pattern[:60]}", lambda place, pattern=pattern: place.ask(None, _filled(pattern, place))
        if shape.names_a_study:
            yield f"own, query {pattern[:60]}", lambda place, pattern=pattern: place.mine(_filled(pattern, place))


def _filled(pattern: str, place: Place) -> str:
    own, other = place.own, place.other
    person = other.person
    return pattern.format(u=other.uid, o=own.uid, m=quote(person.mrn), n=person.word, w=other.word)

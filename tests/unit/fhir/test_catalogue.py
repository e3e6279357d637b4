"""Searches on a few thousand studies: what is found, and how little is read for it, on both engines."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from sqlalchemy.engine import Connection

from app.access import Access, Action, decide, parse_scopes, study_facts
from app.dicom import finding, qido
from app.dicom.orthanc import Orthanc
from app.dicom.paths import Target
from app.dicom.shelf import Catalogue, Shelf
from app.errors import ArchiveUnavailable, TooLarge, Unavailable
from app.fhir import catalogue, index, resources
from app.fhir.mapping import imaging_study
from app.fhir.mapping import patient as patients
from app.fhir.mapping.task import Step, scheduled
from app.fhir.mapping.worklist import Site
from app.fhir.registry import offer
from app.settings import Settings
from app.store import resources as rows
from app.store.database import Store, run, run_many
from app.store.resources import Change, Stored
from app.store.studies import HeldStudy
from app.workflow import site

Json = dict[str, Any]
EXPECTED: dict[str, set[str]] = {}
"""By query: what matches of all there is, asked of each study in turn."""
STUDIES, PATIENTS = 1500, 150
NAMES = (
    "Doe^John",
    "Buc^Jérôme",
    "van der Berg^An",
    "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "O'Neil^Sinéad",
    "Doering^Jo^K",
)
MODALITIES = ("CT", "MR", "CR", "US")
CT = "1.2.840.10008.5.1.4.1.1.2"
ACCESSION = "urn:isocenter:accession"
NOWHERE = "http://127.0.0.1:1"


def patient(number: int) -> Json:
    return {
        "resourceType": "Patient",
        "id": f"p{number}",
        "identifier": [{"system": "urn:isocenter:mrn", "value": f"M{number}"}, {"value": f"LOCAL-{number}"}],
        "name": patients.human_names(NAMES[number % len(NAMES)]),
        "birthDate": str(date(1940, 1, 1) + timedelta(days=97 * number)),
        "gender": ("male", "female", "other")[number % 3],
    }


def study(number: int) -> Json:
    day, modality = date(2020, 1, 1) + timedelta(days=number // 3), MODALITIES[number % 4]
    uid = f"1.2.826.{number}"
    instance = {"uid": f"{uid}.1.1", "sopClass": {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{CT}.{number % 4}"}}
    return {
        "resourceType": "ImagingStudy",
        "id": f"s{number}",
        "identifier": [
            imaging_study.uid_identifier(uid),
            imaging_study.accession_identifier(ACCESSION, f"A{number}"),
            {"use": "usual", "value": f"S{number % 50}"},
        ],
        "status": "available",
        "modality": [{"code": modality}],
        "subject": {"reference": f"Patient/p{number % PATIENTS}"},
        "started": f"{day}T{number % 24:02d}:30:00{('Z', '+02:00', '-05:00')[number % 3]}",
        "numberOfSeries": 1,
        "numberOfInstances": 1 + number % 5,
        "description": ("CT Thorax", "MR Knie links", "Röntgen Hand", "Ultraschall Bauch")[number % 4],
        "series": [{"uid": f"{uid}.1", "modality": {"code": modality}, "instance": [instance]}],
    }


def change(resource: Json) -> Change:
    kind = resource["resourceType"]
    stored = Stored(kind, resource["id"], 1, 1, False, resources.dumps(resource))
    return Change(stored, index.extract(resource, offer(kind)))


@dataclass
class World:
    """A store that is full, and what was read of it."""

    store: Store
    orthanc: Orthanc
    known: Catalogue
    everything: Mapping[str, Json]
    told: list[str] = field(default_factory=list)

    def shelf(self, access: Access) -> Shelf:
        def tell(connection: Connection, held: Any, level: Any) -> Any:
            self.told.extend(one.study_uid for one in held)
            return self.known.tell(connection, held, level)

        def covers(held: HeldStudy) -> bool:
            return decide(access, Action("s", "ImagingStudy"), study_facts(held.study_uid, held.patient_id))

        counted = Catalogue(self.known.narrow, tell)
        return Shelf(self.store, self.orthanc, counted, access, covers, "https://here/dicom-web")

    def find(self, access: Access | None = None, **asked: object) -> list[str]:
        """The Study Instance UIDs of a page; `told` holds the studies that were read for it."""
        self.told.clear()
        page = self.page(access, **asked)
        return [one["0020000D"]["Value"][0] for one in page.results]

    def page(self, access: Access | None = None, **asked: object) -> finding.Page:
        query = qido.parse("study", urlencode(asked, doseq=True))
        return finding.find(self.shelf(access or SYSTEM), query, Target("search", "study"), None)

    def expected(self, **asked: object) -> set[str]:
        text = urlencode(asked, doseq=True)
        if text not in EXPECTED:
            query = qido.parse("study", text)
            EXPECTED[text] = {uid for uid, row in self.everything.items() if query.meets(dict(row), "study")}
        return EXPECTED[text]


def scoped(scope: str, **bounds: object) -> Access:
    return Access("app", grant_id="g", scopes=parse_scopes(scope)[0], **bounds)  # type: ignore[arg-type]


SYSTEM = scoped("system/ImagingStudy.rs")
OF_PATIENT = scoped("patient/ImagingStudy.rs", patient_id="p7")
OF_STUDY = scoped("patient/ImagingStudy.rs", patient_id="p7", studies=frozenset({"1.2.826.157"}))


def fill(store: Store) -> None:
    every = [*(patient(number) for number in range(PATIENTS)), *(study(number) for number in range(STUDIES))]
    for start in range(0, len(every), 500):
        store.transact(
            lambda connection, start=start: rows.write(connection, [*map(change, every[start : start + 500])])
        )
    # An order whose images nobody has sent, and images of which the archive has lost sight.
    registered = study(STUDIES) | {"status": "registered"}
    store.transact(lambda connection: rows.write(connection, [change(registered), change(study(STUDIES + 1))]))
    held = [
        (f"o{number}", f"1.2.826.{number}", f"s{number}", f"p{number % PATIENTS}", None) for number in range(STUDIES)
    ]
    held.append((f"o{STUDIES + 1}", f"1.2.826.{STUDIES + 1}", f"s{STUDIES + 1}", "p1", 1))
    sql = """INSERT INTO study (orthanc_id, study_uid, imaging_study_id, patient_id, missing_since, digest, changed,
        complete, instances, series, last_update, gone_reason) VALUES (?, ?, ?, ?, ?, 'd', 0, false, 1, 1, '', '')"""
    store.transact(lambda connection: run_many(connection, sql, held))
    # What a server that lives does by itself.
    store.transact(lambda connection: run(connection, "ANALYZE"))


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if request.param == "sqlite":
        path = tmp_path_factory.mktemp("catalogue") / "isocenter.sqlite"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        url = f"sqlite:///{path}"
    else:
        url = request.getfixturevalue("postgres").create("catalogue", "template_isocenter")
    store = Store(url)
    fill(store)
    known = catalogue.of(site.of(Settings()).worklist)
    held = [HeldStudy(f"o{n}", f"1.2.826.{n}", f"s{n}", f"p{n % PATIENTS}") for n in range(STUDIES)]
    with store.read() as connection:
        told = known.tell(connection, held, "study")
    everything = {one.study_uid: told[one.imaging_study_id] for one in held}
    with Orthanc(NOWHERE, patience=1) as orthanc:
        yield World(store, orthanc, known, everything)
    store.close()
    if request.param == "postgres":
        request.getfixturevalue("postgres").drop("catalogue")


QUERIES: list[dict[str, object]] = [
    {},
    {"StudyInstanceUID": "1.2.826.17"},
    {"StudyInstanceUID": ["1.2.826.17", "1.2.826.18,1.2.826.1", "9.9"]},
    {"StudyInstanceUID": ",".join(f"1.2.826.{number}" for number in range(0, STUDIES, 7))},
    {"AccessionNumber": "A120"},
    {"AccessionNumber": "A12?"},
    {"AccessionNumber": "*99"},
    {"StudyID": "S7"},
    {"PatientID": "M12"},
    {"PatientID": "M1*"},
    {"PatientID": "LOCAL-12"},
    {"PatientName": "doe^john"},
    {"PatientName": "DOE*"},
    {"PatientName": "Doe"},
    {"PatientName": "buc^jer*"},
    {"PatientName": "VAN DER B*"},
    {"PatientName": "山田*"},
    {"PatientName": "*=山田^太郎"},
    {"PatientName": "やまだ^たろう"},
    {"PatientName": "*neil*"},
    {"PatientName": "?oe^*"},
    {"PatientBirthDate": "19400101"},
    {"PatientBirthDate": "19500101-19600101"},
    {"PatientBirthDate": "-19410101"},
    {"PatientSex": "F"},
    {"PatientSex": "f"},
    {"StudyDate": "20200101"},
    {"StudyDate": "20200301-20200310"},
    {"StudyDate": "20210501-"},
    {"StudyDate": "-20200103"},
    {"StudyDate": "20200301-20200302", "StudyTime": "2200-0200"},
    {"StudyTime": "0930"},
    {"StudyTime": "0000-0100", "ModalitiesInStudy": "CT"},
    {"ModalitiesInStudy": "MR"},
    {"ModalitiesInStudy": "MR,US"},
    {"ModalitiesInStudy": "C*"},
    {"ModalitiesInStudy": "XX"},
    {"SOPClassesInStudy": f"{CT}.1"},
    {"StudyDescription": "Röntgen Hand"},
    {"StudyDescription": "röntgen hand"},
    {"StudyDescription": "MR*links"},
    {"StudyDescription": "*Bauch"},
    {"NumberOfStudyRelatedInstances": "5"},
    {"NumberOfStudyRelatedSeries": "2"},
    {"PatientName": "Doe*", "StudyDate": "20200101-20200601", "ModalitiesInStudy": "CT", "PatientSex": "M"},
    {"PatientID": "M12", "AccessionNumber": "A12"},
    {"PatientID": "M12", "AccessionNumber": "A13"},
    {"AccessionNumber": '""', "emptyvaluematching": "true"},
    {"PatientID": "M12", "AccessionNumber": "", "PatientName": "*"},
]


@pytest.mark.parametrize("asked", QUERIES, ids=lambda asked: urlencode(asked)[:60])
def test_the_index_leaves_out_nothing_that_matches(world: World, asked: dict[str, object]) -> None:
    expected = world.expected(**asked)
    found = world.find(**asked)
    assert len(found) == len(set(found)) == min(len(expected), qido.MAX_RESULTS)
    assert set(found) <= expected


def test_a_list_of_studies_is_read_no_further_than_it_is_shown(world: World) -> None:
    for offset in (0, 1000, STUDIES - 10):
        found = world.find(limit=20, offset=offset)
        assert len(found) == min(20, STUDIES - offset)
        assert world.told == found[: len(found)] + world.told[len(found) :]
        assert len(world.told) <= 2 * 21, "the results, and what tells whether there are others"


@pytest.mark.parametrize(
    ("asked", "most"),
    [
        ({"StudyInstanceUID": "1.2.826.17"}, 1),
        ({"AccessionNumber": "A1234"}, 1),
        ({"PatientID": "M12"}, 10),
        ({"PatientID": "M12", "StudyDate": "20200101-20200601"}, 3),
        ({"StudyDate": "20200301-20200310"}, 36),
        ({"PatientName": "Buc^J*", "StudyDate": "20200301-20200310"}, 6),
        ({"ModalitiesInStudy": "CT", "limit": 5}, finding.BATCH),
        ({"StudyID": "S7"}, 60),
        ({"SOPClassesInStudy": "1.2.3"}, 0),
    ],
    ids=str,
)
def test_only_what_the_index_finds_is_read(world: World, asked: dict[str, object], most: int) -> None:
    found = world.find(**asked)
    assert set(found) <= world.expected(**asked)
    assert len(world.told) <= most


def test_pages_neither_repeat_nor_skip(world: World) -> None:
    whole = world.find(PatientName="Doe*")
    pages = [world.find(PatientName="Doe*", limit=90, offset=at) for at in range(0, len(whole) + 90, 90)]
    assert [uid for page in pages for uid in page] == whole
    moments = [world.everything[uid]["StudyDate"] for uid in whole]
    near = [abs(int(first) - int(second)) for first, second in zip(moments, sorted(moments, reverse=True), strict=True)]
    assert moments[0] > moments[-1]
    assert max(near) <= 9000, "the newest first, but for a day's difference of time zones"


def test_a_grant_sees_its_own_and_reads_no_others_whatever_is_asked(world: World) -> None:
    own = {f"1.2.826.{number}" for number in range(7, STUDIES, PATIENTS)}
    for asked in QUERIES:
        found = set(world.find(OF_PATIENT, **asked))
        assert found == own & world.expected(**asked)
        assert set(world.told) <= own, "time spent on others' studies would tell of them"
        found = set(world.find(OF_STUDY, **asked))
        assert found == {"1.2.826.157"} & world.expected(**asked)
        assert set(world.told) <= {"1.2.826.157"}


def test_a_grant_may_name_many_studies(world: World) -> None:
    named = {f"1.2.826.{number}" for number in range(0, 900)}
    access = scoped("patient/ImagingStudy.rs", patient_id="p7", studies=frozenset(named))
    own = {f"1.2.826.{number}" for number in range(7, 900, PATIENTS)}
    assert set(world.find(access)) == own
    assert set(world.find(access, StudyInstanceUID=",".join(sorted(named | {"1.2.826.1057"})))) == own
    assert set(world.told) <= own


def test_a_caller_is_told_that_there_is_more(world: World) -> None:
    prefix = "299 https://here/dicom-web: "
    assert world.page(limit=2).warnings == [prefix + finding.MORE]
    assert world.page(limit=2, offset=STUDIES - 2).warnings == []
    assert world.page(StudyInstanceUID="1.2.826.1", fuzzymatching="true").headers() == {
        "Warning": prefix + finding.NOT_FUZZY
    }
    assert world.page(limit=0).results == []


def test_without_the_archive_studies_are_told_of_but_not_what_only_it_knows(world: World) -> None:
    [told] = world.page(PatientName="Yamada*", limit=1).results
    assert told["00100010"]["Value"] == [
        {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}
    ]
    assert "00080056" not in told, "whether the images can be had is not known"
    for asked in (
        {"ReferringPhysicianName": "A*"},
        {"includefield": "InstitutionName"},
        {"includefield": "PatientAge"},
    ):
        with pytest.raises(ArchiveUnavailable):
            world.page(**asked)


def test_what_a_study_says_of_itself_is_dicom(world: World) -> None:
    [told] = world.page(StudyInstanceUID="1.2.826.4").results
    assert {tag: one.get("Value") for tag, one in told.items()} == {
        "00080005": ["ISO_IR 192"],
        "00080020": ["20200102"],
        "00080030": ["043000"],
        "00080050": ["A4"],
        "00080061": ["CT"],
        "00080090": None,
        "00080201": ["+0200"],
        "00081030": ["CT Thorax"],
        "00081190": ["https://here/dicom-web/studies/1.2.826.4"],
        "00100010": [{"Alphabetic": "O'Neil^Sinéad"}],
        "00100020": ["M4"],
        "00100030": ["19410123"],
        "00100040": ["F"],
        "0020000D": ["1.2.826.4"],
        "00200010": ["S4"],
        "00201206": [1],
        "00201208": [5],
    }


def test_issuers_are_told_and_matched_where_the_site_names_them(world: World) -> None:
    known = catalogue.of(
        Site(world.store and site.of(Settings()).worklist.zone, {"urn:isocenter:mrn": "HOSP"}, {ACCESSION: "RIS"})
    )
    here = World(world.store, world.orthanc, known, world.everything)
    [told] = here.page(StudyInstanceUID="1.2.826.4", IssuerOfPatientID="HOSP", PatientID="M4").results
    assert told["00100021"]["Value"] == ["HOSP"]
    assert told["00080051"]["Value"] == [{"00400031": {"vr": "UT", "Value": ["RIS"]}}]
    assert here.find(StudyInstanceUID="1.2.826.4", IssuerOfPatientID="OTHER") == []


def test_a_search_that_would_look_at_everything_is_too_broad(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "MOST", STUDIES // 2)
    with pytest.raises(TooLarge, match="StudyDate"):
        world.find(StudyTime="0931")
    assert world.find(StudyTime="0931", StudyDate="20200101-20200131") == []
    assert world.find(limit=1, offset=STUDIES - 1) != []


def test_series_are_told_what_was_requested_of_an_order(world: World) -> None:
    order = {"resourceType": "ServiceRequest", "id": "o1", "identifier": study(1)["identifier"][1:2]}
    step = scheduled(Step("o1", "p1", 1, "MR", "AE", "Knie", "SPS-1", None, "2026-03-01T10:00:00Z"))
    fulfilled = study(STUDIES + 2) | {"basedOn": [{"reference": "ServiceRequest/o1"}]}
    world.store.transact(lambda connection: rows.write(connection, [*map(change, (order, step, fulfilled))]))
    held = HeldStudy("o", f"1.2.826.{STUDIES + 2}", fulfilled["id"], "p1")
    with world.store.read() as connection:
        [row] = world.known.tell(connection, [held], "series").values()
    [asked] = row["RequestAttributesSequence"]
    assert (asked["ScheduledProcedureStepID"], asked["Modality"], asked["RequestedProcedureID"]) == (
        "SPS-1",
        "MR",
        "A1",
    )


def test_an_unreachable_archive_is_said_to_be_so(world: World) -> None:
    query = qido.parse("series", "")
    with pytest.raises(Unavailable) as refused:
        finding.find(world.shelf(SYSTEM), query, Target("search", "series"), None)
    assert refused.value.retry_after > 0

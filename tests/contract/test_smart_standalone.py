"""An app that nobody launched opens for the patient and the study a person chooses (SMART App Launch 2.2, X04, X10)."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from app.fhir import resources
from tests.contract.smart_server import CALLBACK, PASSWORD, STANDALONE, STUDY, Site, consent, hidden, query, site

__all__ = ["site"]
PATIENTS = (
    ("p1", "Probe", ["Paula", "Zoë"], "1970-12-31", "MRN-1"),
    ("p2", "Probe", ["Otto"], "1980-01-02", "MRN-2"),
    ("p3", "Muster<b>", ["Max"], "1990-05-05", "MRN-3"),
)


@pytest.fixture(autouse=True)
def records(site: Site) -> None:
    for resource_id, family, given, born, number in PATIENTS:
        put(
            site,
            {
                "resourceType": "Patient",
                "id": resource_id,
                "name": [{"family": family, "given": given}],
                "birthDate": born,
                "identifier": [{"system": "urn:isocenter:mrn", "value": number}],
            },
        )
    for resource_id, uid, patient, status in (
        ("i1", STUDY, "p1", "available"),
        ("i2", f"{STUDY}.2", "p1", "cancelled"),
        ("i3", f"{STUDY}.3", "p2", "available"),
    ):
        put(
            site,
            {
                "resourceType": "ImagingStudy",
                "id": resource_id,
                "status": status,
                "subject": {"reference": f"Patient/{patient}"},
                "started": "2026-03-03T10:00:00Z",
                "modality": [{"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "CT"}],
                "description": f"Study {resource_id}",
                "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}],
                "basedOn": [{"reference": "ServiceRequest/o1"}],
            },
        )


def put(site: Site, resource: dict[str, Any]) -> None:
    site.store.transact(lambda connection: resources.put(connection, resource, cause="test"))


def shown(page: httpx.Response, what: str) -> list[str]:
    return re.findall(rf'name="{what}" value="([^"]+)"', page.text)


class Person:
    """Somebody who sits before the pages."""

    def __init__(self, site: Site, browser: httpx.Client, client_id: str = "app", **changes: str | None) -> None:
        self.site, self.browser = site, browser
        self.page = site.log_in(browser, site.asking(client_id, **changes))

    def search(self, text: str) -> list[str]:
        self.send(wanted=text)
        assert self.page.status_code == 200
        return shown(self.page, "patient")

    def send(self, **fields: str) -> httpx.Response:
        page = self.browser.post("/auth/choose", data={**hidden(self.page), **fields})
        if page.status_code == 303 and page.headers["location"].startswith(self.site.url):
            page = self.browser.get(page.headers["location"])
        self.page = page
        return page

    def allow(self) -> dict[str, str]:
        answer = self.browser.post("/auth/consent", data=consent(self.page, "allow"))
        assert answer.status_code == 303, answer.text
        return query(answer.headers["location"])


def test_a_person_finds_a_patient_and_the_app_gets_that_one(site: Site) -> None:
    """X03 X04"""
    with site.browser() as browser:
        person = Person(site, browser, scope=STANDALONE)
        assert "Whose record?" in person.page.text
        assert shown(person.page, "patient") == []
        assert person.search("probe") == ["p2", "p1"]
        person.send(patient="p2")
        assert "Otto" not in person.page.text.partition("<form")[2]
        answer = site.redeem(person.allow()["code"])
    body = answer.json()
    assert (body["patient"], body["need_patient_banner"]) == ("p2", True)
    assert "fhirContext" not in body
    access = site.access(body["access_token"])
    assert (access.patient_id, access.studies) == ("p2", None)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("zoe probe", ["p1"]),
        ("Probe 1980-01-02", ["p2"]),
        ("1970-12-31", ["p1"]),
        ("MRN-3", ["p3"]),
        ("MRN-", []),
        ("p", []),
        ("", []),
        ("1970-12-31 1980-01-02", []),
        ("%", []),
        ("a,b|c\\$", []),
        ("probe' OR 1=1", []),
    ],
)
def test_what_a_text_means(site: Site, text: str, found: list[str]) -> None:
    with site.browser() as browser:
        person = Person(site, browser, scope=STANDALONE)
        assert person.search(text) == found
        assert "<b>" not in person.page.text


def test_the_page_shows_names_as_text_and_keeps_the_search(site: Site) -> None:
    with site.browser() as browser:
        person = Person(site, browser, scope=STANDALONE)
        assert person.search("muster") == ["p3"]
        assert "Muster&lt;b&gt;" in person.page.text
        assert 'value="muster"' in person.page.text


def test_a_study_is_chosen_after_its_patient(site: Site) -> None:
    """X10"""
    wish = f"{STANDALONE} launch/imagingstudy"
    with site.browser() as browser:
        person = Person(site, browser, scope=wish)
        person.search("zoe")
        person.send(patient="p1")
        assert shown(person.page, "study") == ["i1"]
        person.send(study="i1")
        body = site.redeem(person.allow()["code"]).json()
    assert body["fhirContext"] == [{"reference": "ImagingStudy/i1"}]
    assert body["patient"] == "p1"
    assert "launch/imagingstudy" in body["scope"].split()


def test_an_app_for_one_study_gets_no_more_than_that_study(site: Site) -> None:
    """S05 S13"""
    with site.browser() as browser:
        person = Person(site, browser, "viewer", scope="openid patient/ImagingStudy.rs patient/*.rs")
        person.search("zoe")
        person.send(patient="p1")
        answer = person.send(study="i1")
        assert answer.status_code == 303
        body = site.redeem(query(answer.headers["location"])["code"], "viewer").json()
    assert site.access(body["access_token"]).studies == frozenset({STUDY})
    assert f"patient/ImagingStudy.rs?identifier=urn:dicom:uid|urn:oid:{STUDY}" in body["scope"].split()


def test_a_study_of_another_patient_or_without_images_cannot_be_chosen(site: Site) -> None:
    for study in ("i2", "i3", "i9", "../i1"):
        with site.browser() as browser:
            person = Person(site, browser, "viewer", scope="patient/ImagingStudy.rs")
            person.search("zoe")
            person.send(patient="p1")
            answer = person.send(study=study)
        assert query(answer.headers["location"])["error"] == "access_denied"


def test_an_app_for_listed_patients_is_opened_for_those_only(site: Site) -> None:
    """X04"""
    with site.browser() as browser:
        person = Person(site, browser, "ward", scope=STANDALONE)
        assert person.search("probe") == ["p2"]
        refused = person.send(patient="p1")
        assert query(refused.headers["location"])["error"] == "access_denied"
    unknown = []
    for patient in ("p1", "p9"):
        with site.browser() as browser:
            person = Person(site, browser, "ward", scope=STANDALONE)
            unknown.append(person.send(patient=patient).headers["location"].replace(patient, ""))
    assert unknown[0] == unknown[1]


def test_a_choice_is_for_one_person_one_app_and_one_use(site: Site) -> None:
    """X02"""
    with site.browser() as browser:
        person = Person(site, browser, scope=STANDALONE)
        chosen = browser.post("/auth/choose", data={**hidden(person.page), "patient": "p1"}).headers["location"]
        value = query(chosen)["chosen"]
        site.said.append(value)
        person.page = browser.get(chosen)
        assert "code" in person.allow()
        again = browser.get(chosen)
        assert query(again.headers["location"])["error"] == "invalid_request"
        fresh = browser.post("/auth/choose", data={**hidden(_page(site, browser)), "patient": "p1"}).headers["location"]
    with site.browser() as browser:
        other = site.log_in(browser, {**site.asking(scope=STANDALONE), "chosen": query(fresh)["chosen"]}, "operator")
        assert query(other.headers["location"])["error"] == "access_denied"
        wrong = browser.get("/auth/authorize", params={**site.asking("ward"), "chosen": query(fresh)["chosen"]})
        assert query(wrong.headers["location"])["error"] == "invalid_request"


def _page(site: Site, browser: httpx.Client) -> httpx.Response:
    return browser.get("/auth/authorize", params=site.asking(scope=STANDALONE))


def test_a_launch_says_what_is_opened_and_nobody_chooses(site: Site) -> None:
    with site.browser() as browser:
        asked = site.asking(launch=site.launch(), scope=f"launch {STANDALONE}")
        page = site.log_in(browser, asked)
        assert "Whose record?" not in page.text
        both = browser.get("/auth/authorize", params={**asked, "chosen": "x"})
        assert query(both.headers["location"])["error"] == "invalid_request"


def test_nobody_is_asked_to_choose_with_prompt_none(site: Site) -> None:
    with site.browser() as browser:
        Person(site, browser, scope=STANDALONE)
        answer = browser.get("/auth/authorize", params=site.asking(scope=STANDALONE, prompt="none"))
        assert query(answer.headers["location"])["error"] == "interaction_required"


def test_whoever_chooses_nothing_gives_nothing(site: Site) -> None:
    """A11"""
    with site.browser() as browser:
        answer = Person(site, browser, scope=STANDALONE).send(decision="deny")
        assert query(answer.headers["location"])["error"] == "access_denied"
        assert query(answer.headers["location"])["state"] == site.asking()["state"]


def test_a_form_of_another_site_chooses_nothing(site: Site) -> None:
    """A15"""
    with site.browser() as browser:
        person = Person(site, browser, scope=STANDALONE)
        forged = browser.post("/auth/choose", data={**hidden(person.page), "csrf": "x", "patient": "p1"})
        assert forged.status_code == 403
    with site.browser() as stranger:
        page = stranger.post("/auth/choose", data={**hidden(person.page), "wanted": "probe"})
        assert (page.status_code, "Otto" in page.text, "Log in" in page.text) == (200, False, True)


def test_without_a_patient_scope_nobody_is_chosen(site: Site) -> None:
    """S12"""
    with site.browser() as browser:
        person = Person(site, browser, scope="openid user/Patient.rs")
        assert "Whose record?" not in person.page.text
        body = site.redeem(person.allow()["code"]).json()
    assert "patient" not in body


def test_who_looked_for_whom_is_in_the_trail_without_names(site: Site) -> None:
    with site.browser() as browser:
        person = Person(site, browser, scope=STANDALONE)
        person.search("probe")
    told = [record for record in site.records if record.action == "find-patient"]
    assert [(record.client_id, record.fhir_user) for record in told] == [("app", "Practitioner/radiologist")]
    assert "probe" not in repr(site.records).lower().replace(CALLBACK, "")
    assert PASSWORD not in repr(site.records)

"""The demonstration EHR against the whole server: what a person sees, sends and is refused, over real HTTP."""

from __future__ import annotations

import html
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import uvicorn
from playwright.sync_api import Page, expect

from app.fhir import resources
from app.main.demo_ehr import Tokens
from app.main.prepare import prepare
from app.main.server import create_app
from app.settings import Settings
from app.store.database import Store
from app.workflow import reports
from tests.processes import wait_until

Json = dict[str, Any]
SAME = {"Sec-Fetch-Site": "same-origin"}
CT_CHEST = "http://loinc.org|24627-2"
once = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what does not depend on the store's engine."""
NEEDED = {"content-security-policy", "x-frame-options", "x-content-type-options", "cache-control", "referrer-policy"}


@dataclass(slots=True)
class Clinic:
    """The server with its demo EHR, a browser at it, and a client of its FHIR interface."""

    url: str
    store: Store
    browser: httpx.Client
    fhir: httpx.Client

    def see(self, path: str, status: int = 200) -> str:
        response = self.browser.get(path)
        assert response.status_code == status, response.text
        return response.text

    def send(self, path: str, *, seen: str, **entered: str) -> httpx.Response:
        """Fill in the form that posts to `path` on the page that was seen."""
        form = next(part for part in re.findall(r"<form.*?</form>", seen, re.DOTALL) if f'action="{path}"' in part)
        hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form))
        return self.browser.post(path, data=hidden | entered, headers=SAME)

    def act_as(self, user: str) -> None:
        assert self.send("/ehr/user", seen=self.see("/ehr"), user=user).status_code == 303

    def order(self, **entered: str) -> str:
        """The id of a CT order placed on the page of a patient."""
        page = "/ehr/patients/demo-0003"
        form = {"procedure": CT_CHEST, "priority": "urgent", "reason": "Cough", "when": "2026-03-02T09:30"}
        response = self.send(f"{page}/orders", seen=self.see(page), **form | entered)
        assert response.status_code == 303, response.text
        return response.headers["location"].removeprefix("/ehr/orders/")

    def read(self, reference: str) -> Json:
        return self.fhir.get(f"/fhir/{reference}").raise_for_status().json()

    def find(self, query: str) -> list[Json]:
        bundle = self.fhir.get(f"/fhir/{query}").raise_for_status().json()
        return [entry["resource"] for entry in bundle.get("entry", [])]

    def put(self, resource: Json) -> Json:
        path = f"/fhir/{resource['resourceType']}/{resource['id']}"
        return self.fhir.put(path, json=resource).raise_for_status().json()

    def acquire(self, order_id: str) -> Json:
        """The order's study gets images, as the reading of the archive says it."""
        study = self.find(f"ImagingStudy?basedon=ServiceRequest/{order_id}")[0]
        images = {"status": "available", "numberOfSeries": 1, "numberOfInstances": 12}
        held = study | images | {"started": "2026-03-02T09:41:00Z"}
        self.store.transact(lambda connection: resources.put(connection, held, cause="test"))
        return held

    def measure(self, order_id: str, label: str = "Nodule") -> None:
        """A group with one length, gathered into the draft report as the workflow does it."""
        study = self.find(f"ImagingStudy?basedon=ServiceRequest/{order_id}")[0]
        common: Json = {
            "resourceType": "Observation",
            "status": "preliminary",
            "basedOn": [{"reference": f"ServiceRequest/{order_id}"}],
            "subject": study["subject"],
        }
        name = label.lower()
        length = {"value": 12.3456, "unit": "mm", "system": "http://unitsofmeasure.org", "code": "mm"}
        member = common | {"id": f"{name}-length", "code": {"text": "Long axis"}, "valueQuantity": length}
        members = [{"reference": f"Observation/{name}-length"}]
        group = common | {"id": f"{name}-group", "code": {"text": "Group"}, "hasMember": members}
        self.put(member)
        self.put(group | {"valueCodeableConcept": {"text": label}})
        results = [f"Observation/{name}-group"]
        self.store.transact(lambda connection: reports.gather(connection, study, results, "test"))


def state(page: str) -> str:
    """The order's state as the page announces it."""
    return re.findall(r'role="status"[^>]*>([^<]+)<', page)[0]


@pytest.fixture
def clinic(database_url: str, tmp_path: Path) -> Iterator[Clinic]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        settings = Settings(
            port=port,
            public_url=f"http://127.0.0.1:{port}",
            data_dir=tmp_path,
            database_url=database_url,  # type: ignore[arg-type]
            secret_key="a test's own secret, long enough",  # type: ignore[arg-type]
            orthanc_url="http://127.0.0.1:1",
            demo=True,
        )
        prepare(settings)
        server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_until(lambda: server.started, "the HTTP server")
        store = Store(settings.database)
        token = {"Authorization": f"Bearer {Tokens(store)()}", "Content-Type": "application/fhir+json"}
        base = {"base_url": settings.public_url, "trust_env": False}
        with httpx.Client(**base) as browser, httpx.Client(**base, headers=token) as fhir:
            yield Clinic(settings.public_url, store, browser, fhir)
        server.should_exit = True
        thread.join()
        store.close()


def test_an_order_lives_its_whole_life_on_the_pages(clinic: Clinic) -> None:
    order_id = clinic.order()
    page = f"/ehr/orders/{order_id}"

    ordered = clinic.see(page)
    order = clinic.read(f"ServiceRequest/{order_id}")
    accession = next(one["value"] for one in order["identifier"] if "type" in one)
    assert f"isocenter modality acquire --accession {accession}" in ordered
    assert state(ordered) == "Ordered"
    assert "disabled>Open images" in ordered
    assert "Order accepted, step scheduled" in ordered

    clinic.acquire(order_id)
    available = clinic.see(page)
    assert state(available) == "Images available"
    assert "disabled" not in available
    assert "modality acquire" not in available
    assert ">12</dd>" in available

    clinic.measure(order_id)
    draft = clinic.see(page)
    assert state(draft) == "Draft report"
    assert "Nodule" in draft
    assert "12.35 mm" in draft

    signing = clinic.see(f"{page}/sign")
    assert "12.35 mm" in signing
    text = "No acute finding.\r\nNodule of 12 mm <right>."
    assert clinic.send(f"{page}/sign", seen=signing, conclusion=text).headers["location"] == page

    signed = clinic.see(page)
    assert state(signed) == "Signed"
    assert "Nodule of 12 mm &lt;right&gt;." in signed
    assert "Signed by Dr. Rana Demo-Radiologist" in signed
    [report] = clinic.find(f"DiagnosticReport?based-on=ServiceRequest/{order_id}")
    assert (report["status"], report["conclusion"]) == ("final", text.replace("\r\n", "\n"))
    assert report["resultsInterpreter"][0]["reference"] == "Practitioner/demo-radiologist"
    assert report["result"] == [{"reference": "Observation/nodule-group"}]
    assert clinic.read("Observation/nodule-length")["status"] == "final"


@once
def test_the_order_says_who_asks_for_what_when_and_why(clinic: Clinic) -> None:
    order = clinic.read(f"ServiceRequest/{clinic.order()}")

    assert (order["status"], order["intent"], order["priority"]) == ("active", "order", "urgent")
    assert order["category"][0]["coding"][0]["code"] == "363679005"
    assert order["code"]["coding"][0]["code"] == "24627-2"
    assert order["subject"] == {"reference": "Patient/demo-0003"}
    assert order["requester"]["reference"] == "Practitioner/demo-radiologist"
    assert order["occurrenceDateTime"] == "2026-03-02T09:30:00+00:00"
    assert order["reasonCode"] == [{"text": "Cough"}]


@once
def test_an_order_sent_twice_is_one_order(clinic: Clinic) -> None:
    page = "/ehr/patients/demo-0003"
    seen = clinic.see(page)
    form = {"procedure": CT_CHEST, "priority": "routine", "when": "2026-03-02T09:30"}

    first, second = (clinic.send(f"{page}/orders", seen=seen, **form) for _ in range(2))

    assert first.headers["location"] == second.headers["location"]
    assert len(clinic.find("ServiceRequest?patient=Patient/demo-0003")) == 1


@once
def test_what_the_server_refuses_is_told_and_what_was_entered_stays(clinic: Clinic) -> None:
    page = "/ehr/patients/demo-0003"
    form = {"procedure": CT_CHEST, "priority": "at once", "reason": "Cough & fever", "when": "2026-03-02T09:30"}

    answer = clinic.send(f"{page}/orders", seen=clinic.see(page), **form)

    assert answer.status_code == 422
    assert "priority" in re.findall(r'<div class="fault".*?</div>', answer.text, re.DOTALL)[0]
    assert "Cough &amp; fever" in answer.text
    assert clinic.find("ServiceRequest?patient=Patient/demo-0003") == []


@once
def test_open_images_leads_to_the_launch_of_that_study_for_that_person(clinic: Clinic) -> None:
    order_id = clinic.order()
    clinic.acquire(order_id)
    page = f"/ehr/orders/{order_id}"

    answer = clinic.send(f"{page}/open", seen=clinic.see(page))

    assert answer.status_code == 303
    target = urlsplit(answer.headers["location"])
    assert (f"{target.scheme}://{target.netloc}{target.path}") == f"{clinic.url}/launch"
    assert parse_qs(target.query)["iss"] == [f"{clinic.url}/fhir"]
    assert [one["name"][0]["text"] for one in clinic.find("Practitioner?identifier=radiologist")] == [
        "Dr. Rana Demo-Radiologist"
    ]


@once
def test_images_that_are_not_there_cannot_be_opened(clinic: Clinic) -> None:
    page = f"/ehr/orders/{clinic.order()}"

    answer = clinic.send(f"{page}/open", seen=clinic.see(page))

    assert answer.status_code == 404
    assert "no study with images" in answer.text


@once
def test_only_a_radiologist_signs(clinic: Clinic) -> None:
    order_id = clinic.order()
    clinic.acquire(order_id)
    page = f"/ehr/orders/{order_id}"
    seen = clinic.see(f"{page}/sign")
    clinic.act_as("technologist")

    assert "/sign" not in clinic.see(page)
    assert "Only a radiologist" in clinic.see(f"{page}/sign", 403)
    assert clinic.send(f"{page}/sign", seen=seen, conclusion="Normal.").status_code == 403
    assert clinic.find(f"DiagnosticReport?based-on=ServiceRequest/{order_id}") == []


def test_a_report_that_changed_meanwhile_is_not_signed_and_no_word_is_lost(clinic: Clinic) -> None:
    order_id = clinic.order()
    clinic.acquire(order_id)
    clinic.measure(order_id, "Nodule")
    page = f"/ehr/orders/{order_id}/sign"
    seen = clinic.see(page)
    clinic.measure(order_id, "Effusion")

    answer = clinic.send(page, seen=seen, conclusion="One nodule.")

    assert answer.status_code == 409
    assert "has changed since you opened this page" in answer.text
    assert ">One nodule.</textarea>" in answer.text
    assert "Effusion" in answer.text
    assert clinic.find(f"DiagnosticReport?based-on=ServiceRequest/{order_id}")[0]["status"] == "preliminary"
    assert clinic.send(page, seen=answer.text, conclusion="Nodule, effusion.").status_code == 303


def test_a_report_without_measurements_is_written_and_signed_once(clinic: Clinic) -> None:
    order_id = clinic.order()
    study = clinic.acquire(order_id)
    page = f"/ehr/orders/{order_id}/sign"
    seen = clinic.see(page)

    assert clinic.send(page, seen=seen, conclusion=" ").status_code == 422
    assert clinic.send(page, seen=seen, conclusion="Normal.").status_code == 303
    again = clinic.send(page, seen=seen, conclusion="Not normal.")

    assert again.status_code == 409
    [report] = clinic.find(f"DiagnosticReport?based-on=ServiceRequest/{order_id}")
    assert (report["status"], report["conclusion"]) == ("final", "Normal.")
    assert report["imagingStudy"] == [{"reference": f"ImagingStudy/{study['id']}"}]
    assert clinic.browser.get(page).headers["location"] == f"/ehr/orders/{order_id}"


@once
def test_nothing_is_signed_before_there_are_images(clinic: Clinic) -> None:
    page = f"/ehr/orders/{clinic.order()}"

    assert "/sign" not in clinic.see(page)
    assert "no images" in clinic.see(f"{page}/sign", 409)


@once
def test_the_signed_pdf_is_served_as_the_report_holds_it(clinic: Clinic) -> None:
    order_id = clinic.order()
    clinic.acquire(order_id)
    page = f"/ehr/orders/{order_id}"
    clinic.send(f"{page}/sign", seen=clinic.see(f"{page}/sign"), conclusion="Normal.")
    assert "not been made into a PDF yet" in clinic.see(f"{page}/report.pdf", 404)
    [report] = clinic.find(f"DiagnosticReport?based-on=ServiceRequest/{order_id}")
    form = [{"contentType": "application/pdf", "data": "JVBERi0xLjcK"}]
    clinic.store.transact(
        lambda tx: resources.edit(tx, "DiagnosticReport", report["id"], {"presentedForm": form}, cause="test")
    )

    assert f'href="{page}/report.pdf"' in clinic.see(page)
    answer = clinic.browser.get(f"{page}/report.pdf")
    assert (answer.headers["content-type"], answer.content) == ("application/pdf", b"%PDF-1.7\n")


@once
def test_a_patient_is_found_by_name_or_mrn(clinic: Clinic) -> None:
    for text in ("beispiel", "ada", "Ada Beispiel", "DEMO-0003"):
        answer = clinic.browser.get("/ehr", params={"q": text}).text

        assert "BEISPIEL, Ada" in answer, text
        assert "MUSTERMANN" not in answer, text


@once
def test_a_search_without_result_says_so(clinic: Clinic) -> None:
    for text in ("nobody", "a,b|c$d\\", "%", "<script>"):
        answer = clinic.browser.get("/ehr", params={"q": text})

        assert answer.status_code == 200, text
        assert "Nobody was found" in answer.text, text
        assert "<script>" not in answer.text


@once
def test_a_new_patient_is_added_once_and_shown_escaped(clinic: Clinic) -> None:
    form = {"family": "<b>Quill</b>", "given": "Rosa Lind", "mrn": "DEMO-9", "sex": "female", "born": "1994-06-05"}

    added = clinic.send("/ehr/patients", seen=clinic.see("/ehr"), **form)
    again = clinic.send("/ehr/patients", seen=clinic.see("/ehr"), **form)

    page = clinic.see(added.headers["location"])
    assert "&lt;B&gt;QUILL&lt;/B&gt;, Rosa Lind" in page
    assert "<title>Chart · Demo EHR</title>" in page
    assert again.status_code == 422
    assert "This MRN belongs to another patient." in again.text
    assert len(clinic.find("Patient?identifier=DEMO-9")) == 1


@once
def test_a_form_counts_only_from_our_own_pages(clinic: Clinic) -> None:
    token = re.findall(r'name="token" value="([\w\-]{43})"', clinic.see("/ehr"))[0]
    form = {"token": token, "user": "technologist"}
    cases: list[tuple[dict[str, str], int]] = [
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, 303),
        ({"Origin": clinic.url}, 303),
        ({"Sec-Fetch-Site": "same-site", "Origin": clinic.url}, 403),
        ({"Origin": "https://elsewhere.example.org"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Host": "rebound.example.org"}, 403),
        ({}, 403),
    ]

    for headers, status in cases:
        assert clinic.browser.post("/ehr/user", data=form, headers=headers).status_code == status, headers
    clinic.browser.cookies.clear()
    assert clinic.browser.post("/ehr/user", data=form, headers=SAME).status_code == 403


@once
def test_a_form_without_its_token_or_too_long_is_refused(clinic: Clinic) -> None:
    clinic.see("/ehr")

    assert clinic.browser.post("/ehr/user", data={"user": "admin"}, headers=SAME).status_code == 403
    assert clinic.browser.post("/ehr/user", data={"user": "a" * 70_000}, headers=SAME).status_code == 413
    assert clinic.browser.post("/ehr/user", content=iter([b"user=admin"]), headers=SAME).status_code == 413


@once
def test_who_acts_is_kept_in_a_strict_cookie_and_leads_back_only_here(clinic: Clinic) -> None:
    seen = clinic.see("/ehr/patients/demo-0003")
    answer = clinic.send("/ehr/user", seen=seen, user="technologist")
    away = clinic.send("/ehr/user", seen=seen, user="technologist", next="//elsewhere.example.org/")

    cookie = answer.headers["set-cookie"].lower()
    assert answer.headers["location"] == "/ehr/patients/demo-0003"
    assert all(part in cookie for part in ("ehr_user=technologist", "httponly", "samesite=strict", "path=/ehr"))
    assert away.headers["location"] == "/ehr"
    assert '<option value="technologist" selected>' in clinic.see("/ehr")
    assert clinic.send("/ehr/user", seen=seen, user="nobody").status_code == 422


@once
def test_every_page_says_what_it_is_and_cannot_be_framed_or_kept(clinic: Clinic) -> None:
    order = f"/ehr/orders/{clinic.order()}"
    for path in ("/ehr", "/ehr/patients/demo-0001", order, f"{order}/sign", "/ehr/orders/none"):
        answer = clinic.browser.get(path)

        assert answer.headers.keys() >= NEEDED, path
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert "Demonstration system. Fictional patients only." in answer.text
        assert "BEISPIEL" not in re.findall(r"<title>(.*?)</title>", answer.text)[0]
        assert not re.search(r"<script(?! src=)|<style| style=| on\w+=", answer.text), path


@once
def test_style_and_script_come_from_here_with_their_types(clinic: Clinic) -> None:
    for name, kind in (("css", "text/css"), ("js", "text/javascript"), ("svg", "image/svg+xml")):
        answer = clinic.browser.get(f"/ehr/static/ehr.{name}")

        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["x-content-type-options"] == "nosniff"


@once
def test_what_is_not_there_is_a_readable_page(clinic: Clinic) -> None:
    for path in ("patients/none", "orders/none", "orders/a%20b", "orders/none/sign", "static/x.css"):
        assert "There is no such" in html.unescape(clinic.see(f"/ehr/{path}", 404))


@once
def test_the_order_page_follows_until_nothing_more_is_expected(clinic: Clinic) -> None:
    order_id = clinic.order()
    page = f"/ehr/orders/{order_id}"
    assert '<meta http-equiv="refresh" content="3">' in clinic.see(page)

    clinic.put(clinic.read(f"ServiceRequest/{order_id}") | {"status": "revoked"})

    cancelled = clinic.see(page)
    assert state(cancelled) == "Cancelled"
    assert "refresh" not in cancelled
    assert "ehr.js" not in cancelled


@once
@pytest.mark.browser
def test_a_browser_follows_the_order_without_moving_the_focus_and_opens_the_viewer_beside_it(
    clinic: Clinic, page: Page
) -> None:
    order_id = clinic.order()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(f"{clinic.url}/ehr/orders/{order_id}")
    chosen = page.get_by_label("Acting as")
    chosen.focus()
    expect(page.get_by_role("button", name="Open images")).to_be_disabled()

    clinic.acquire(order_id)

    expect(page.get_by_role("status")).to_have_text("Images available", timeout=20_000)
    expect(chosen).to_be_focused()
    with page.context.expect_page() as opened:
        page.get_by_role("button", name="Open images").click()
    opened.value.wait_for_url(re.compile(r"/v/[\w-]+/"))
    expect(page.get_by_role("status")).to_have_text("Images available")
    assert complaints == []

"""A clinician's day in Chromium, with DCMTK as the scanner: from the demo EHR's order form to the PDF in OHIF."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from app.dicom import modality
from app.dicom.phantom import Phantom
from tests import processes
from tests.browser import ohif
from tests.story.installation import Installation, installed

ARTIFACTS = Path(os.environ.get("ISOCENTER_ARTIFACTS", Path(__file__).parents[2] / "artifacts"))
SPACING_MM = 0.8
SECONDS = 60_000


def started(installation: Installation) -> httpx.Client:
    """Start the installation; a FHIR client of it."""
    installation.start()
    headers = {"Authorization": f"Bearer {installation.places.token}"}
    return httpx.Client(base_url=f"{installation.base}/fhir", headers=headers, timeout=30, trust_env=False)


def search(client: httpx.Client, kind: str, **criteria: str) -> list[dict[str, Any]]:
    answer = client.get(f"/{kind}", params={name.replace("_", "-"): value for name, value in criteria.items()})
    return [entry["resource"] for entry in answer.raise_for_status().json().get("entry", [])]


def place_order(page: Page, installation: Installation) -> str:
    """Order a CT in the EHR as the radiologist; the accession number it shows."""
    page.goto(f"{installation.base}/ehr")
    page.get_by_role("link", name=re.compile("Testperson", re.IGNORECASE)).first.click()
    page.get_by_label("Procedure").select_option(label="CT Chest")
    page.get_by_label("Reason for the examination").fill("Follow-up of a phantom")
    page.get_by_role("button", name="Place order").click()
    expect(page.locator("#state")).to_have_text(re.compile("ordered|scheduled", re.IGNORECASE))
    return page.locator("dl.facts .number").first.inner_text()


def findscu(installation: Installation, accession: str) -> str:
    """What DCMTK's findscu shows of the worklist for an accession number."""
    port = str(installation.settings.dicom_port)
    command = [
        processes.program("/usr/bin/findscu"), "-W", "-aec", "ISOCENTER", "127.0.0.1", port,
        "-k", f"0008,0050={accession}", "-k", "0010,0010", "-k", "0020,000D", "-k", "0040,0100[0].0008,0060",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stderr


def acquire(installation: Installation, accession: str, folder: Path) -> int:
    """Make the phantom with the worklist's attributes and send it with DCMTK's storescu."""
    [item] = modality.find_worklist(installation.places.worklist, {"AccessionNumber": accession})
    scan = modality.Scan(mpps=False, phantom=Phantom(slices=12))
    folder.mkdir()
    images = modality.images(item, scan)
    for number, image in enumerate(images):
        image.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)
    port = str(installation.settings.orthanc_dicom_port)
    storescu = [processes.program("/usr/bin/storescu"), "-aec", "ORTHANC", "127.0.0.1", port, "+sd", str(folder)]
    subprocess.run(storescu, check=True, timeout=60)
    return len(images)


def until_available(client: httpx.Client, accession: str) -> float:
    """Seconds until the order's study is available."""
    began = time.monotonic()
    processes.wait_until(
        lambda: any(one["status"] == "available" for one in search(client, "ImagingStudy", identifier=accession)),
        "the study to become available",
    )
    return time.monotonic() - began


@pytest.mark.browser
@pytest.mark.orthanc
@pytest.mark.timeout(600)
def test_a_clinician_orders_looks_measures_signs_and_finds_the_pdf(page: Page, tmp_path: Path) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    with installed(tmp_path) as installation, started(installation) as client:
        accession = place_order(page, installation)
        assert accession in findscu(installation, accession)
        count = acquire(installation, accession, tmp_path / "images")
        print(f"available {until_available(client, accession):.2f} s after the last C-STORE")
        page.screenshot(path=ARTIFACTS / "ehr-order.png")

        opener = page.get_by_role("button", name="Open images")
        expect(opener).to_be_enabled(timeout=SECONDS)
        with page.expect_popup() as popup:
            opener.click()
        viewer = popup.value
        ohif.wait_until_rendered(viewer)
        assert "token" not in viewer.url
        shown = ohif.measure_length(viewer, start=(0.35, 0.4), end=(0.65, 0.55))
        viewer.screenshot(path=ARTIFACTS / "ohif-measurement.png")
        ohif.save_report(viewer, "Story")
        drawn = float(re.search(r"[\d.]+", shown)[0])  # type: ignore[index]

        def measured() -> list[dict[str, Any]]:
            found = [search(client, "Observation", based_on=one["basedOn"][0]["reference"]) for one in studies()]
            return [one for resources in found for one in resources if "valueQuantity" in one]

        def studies() -> list[dict[str, Any]]:
            return search(client, "ImagingStudy", identifier=accession)

        [observation] = processes.wait_until(measured, "the drawn length as an Observation", 30)
        quantity = observation["valueQuantity"]
        assert quantity["code"] == "mm"
        assert abs(float(quantity["value"]) - drawn) <= SPACING_MM
        practitioner = client.get(f"/{observation['performer'][0]['reference']}").raise_for_status().json()
        assert practitioner["name"][0]["text"] == "Dr. Rana Demo-Radiologist"

        page.bring_to_front()
        expect(page.locator("#measurements-now")).to_contain_text("mm", timeout=SECONDS)
        page.get_by_role("link", name="Read and sign report").click()
        page.get_by_label(re.compile("Conclusion")).fill("A phantom with one measured distance.")
        page.get_by_role("button", name=re.compile("Sign")).click()
        expect(page.get_by_role("link", name="Signed report (PDF)")).to_be_visible(timeout=SECONDS)
        page.screenshot(path=ARTIFACTS / "ehr-signed.png", full_page=True)

        [order] = search(client, "ServiceRequest", identifier=accession)
        assert order["status"] == "completed"
        with page.expect_popup() as popup:
            page.get_by_role("button", name="Open images").click()
        again = popup.value
        ohif.wait_until_rendered(again)
        expect(again.get_by_text("Signed report").first).to_be_visible(timeout=SECONDS)
        again.screenshot(path=ARTIFACTS / "ohif-report.png")
        [study] = studies()
    assert study["numberOfInstances"] == count + 2, "the images, the measurement report and the PDF"

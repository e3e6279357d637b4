"""One order's whole life over a running installation, by clients from outside, on both databases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.demo import story
from app.fhir import validation
from tests.story.installation import Installation, installed

RESOURCE_TYPES = (
    "Patient", "Practitioner", "ServiceRequest", "Task", "ImagingStudy", "Endpoint", "DiagnosticReport",
    "Observation", "Device", "Provenance",
)  # fmt: skip
SEEDED = ("Testperson", "Rana", "Demo-Radiologist", "Phantom")
"""Names that the story carries: none may stand in a log."""


def everything(installation: Installation) -> list[dict[str, object]]:
    """Every resource the installation serves, page by page."""
    import httpx

    found: list[dict[str, object]] = []
    headers = {"Authorization": f"Bearer {installation.places.token}"}
    with httpx.Client(headers=headers, timeout=30, trust_env=False) as client:
        for kind in RESOURCE_TYPES:
            address = f"{installation.base}/fhir/{kind}?_count=100"
            while address:
                bundle = client.get(address).raise_for_status().json()
                found += [entry["resource"] for entry in bundle.get("entry", [])]
                address = next((one["url"] for one in bundle["link"] if one["relation"] == "next"), "")
    return found


@pytest.mark.orthanc
def test_one_order_lives_its_whole_life(database_url: str, tmp_path: Path) -> None:
    with installed(tmp_path, database_url) as installation:
        installation.start()
        places = installation.places
        played = story.play(places, lambda step: print(step))
        assert played.ok, played.summary()
        resources = everything(installation)
        faults = {f"{one['resourceType']}/{one['id']}": validation.validate(one) for one in resources}
        assert {name: found for name, found in faults.items() if found} == {}
        made = {str(one["resourceType"]) for one in resources}
        assert made == set(RESOURCE_TYPES)
        again = story.play(places, lambda step: print(step))
        assert again.ok, again.summary()
        assert again.accession != played.accession
        logs = installation.logs()
    assert places.token not in logs
    assert [name for name in SEEDED if name in logs] == []
    assert json.loads(again.summary())["ok"] is True

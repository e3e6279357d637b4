"""kill -9 of the whole server between the steps of the story: after a restart the story ends the same."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from app.demo import story
from app.demo.story import Played, Stage
from tests.story.installation import Installation, installed

AFTER = os.environ.get("ISOCENTER_KILL_AFTER", "order,acquire,measure,sign").split(",")
"""The steps after which the server is killed; a campaign names them all."""


def play_with_kills(installation: Installation, kill_after: list[str]) -> Played:
    places, played = installation.places, Played()
    timeout = httpx.Timeout(30)
    with (
        httpx.Client(base_url=places.base, timeout=timeout, trust_env=False) as browser,
        httpx.Client(
            base_url=places.base, timeout=timeout, trust_env=False, headers={"Authorization": f"Bearer {places.token}"}
        ) as ehr,
    ):
        for name, act in story.STEPS:
            act(Stage(places, played, ehr, browser))
            if name in kill_after:
                installation.kill()
                installation.start()
    return played


@pytest.mark.orthanc
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_server_ends_the_story_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name, _ in story.STEPS]
    # What a killed process had claimed is free again only when its claim runs out.
    monkeypatch.setattr(story, "WAIT_SECONDS", 90.0)
    chosen = names if AFTER == ["all"] else AFTER
    assert set(chosen) <= set(names)
    with installed(tmp_path) as installation:
        installation.start()
        played = play_with_kills(installation, chosen)
        headers = {"Authorization": f"Bearer {installation.places.token}"}
        with httpx.Client(base_url=installation.base, headers=headers, trust_env=False, timeout=30) as client:
            order = client.get(f"/fhir/ServiceRequest/{played.order_id}").raise_for_status().json()
            based_on = {"based-on": f"ServiceRequest/{played.order_id}"}
            reports = client.get("/fhir/DiagnosticReport", params=based_on).raise_for_status().json()["entry"]
            study = {"derived-from": f"ImagingStudy/{played.study_id}"}
            observations = client.get("/fhir/Observation", params=study).raise_for_status().json()["entry"]
    assert order["status"] == "completed"
    assert [entry["resource"]["status"] for entry in reports] == ["final"]
    assert sorted(entry["resource"]["status"] for entry in observations) == ["final", "final"]

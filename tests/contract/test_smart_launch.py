"""EHR launch from the outside: discovery, authorize, login, consent, code, token (SMART App Launch 2.2)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.store.database import Store
from tests.contract import smart_server
from tests.contract.smart_server import STUDY, Site


@pytest.fixture
def site(store: Store, tmp_path: Path) -> Iterator[Site]:
    with smart_server.site(store, tmp_path) as running:
        yield running


def test_a_launch_gives_a_token_for_the_patient(site: Site) -> None:
    """T01 T02 X03"""
    body = site.tokens()
    assert body["token_type"] == "Bearer"
    assert 0 < body["expires_in"] <= 3600
    assert body["patient"] == "p1"
    assert body["need_patient_banner"] is True
    access = site.access(body["access_token"])
    assert access.patient_id == "p1"
    assert access.user_id == "radiologist"

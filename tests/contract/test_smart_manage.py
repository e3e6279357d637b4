"""A person sees the apps that act for them and ends one; then its tokens open nothing (V02 V04, A15, D10)."""

from __future__ import annotations

import re
import time

import httpx
import pytest

from app.errors import Unauthenticated
from tests.contract.smart_server import PASSWORD, STUDY, Site, hidden, site

__all__ = ["site"]


def enter(site: Site, browser: httpx.Client, user: str = "radiologist") -> httpx.Response:
    page = browser.get("/auth/manage")
    assert "Log in" in page.text
    answer = browser.post("/auth/manage", data={**hidden(page), "username": user, "password": PASSWORD})
    assert (answer.status_code, answer.headers["location"]) == (303, f"{site.url}/auth/manage")
    return browser.get("/auth/manage")


def ends(page: httpx.Response) -> list[str]:
    return re.findall(r'name="end" value="([^"]+)"', page.text)


def test_a_person_ends_an_app_and_its_tokens_open_nothing(site: Site) -> None:
    """V02 V04"""
    held = site.tokens(scope="launch openid offline_access patient/Patient.r")
    kept = site.tokens("other")
    assert site.access(held["access_token"]).client_id == "app"
    with site.browser() as browser:
        page = enter(site, browser)
        assert page.text.count('class="held"') == 2
        assert "Growth charts" in page.text
        assert "patient p1, the CT of 3 May (i1)" in page.text
        assert "stay connected when you are away" in page.text
        number = next(one for one in ends(page) if one == site.access(held["access_token"]).grant_id)
        began = time.monotonic()
        assert browser.post("/auth/manage", data={**hidden(page), "end": number}).status_code == 303
        with pytest.raises(Unauthenticated):
            site.access(held["access_token"])
        assert time.monotonic() - began < 5
        assert "Growth charts" not in browser.get("/auth/manage").text
    assert site.refresh(held["refresh_token"]).json()["error"] == "invalid_grant"
    assert site.access(kept["access_token"]).client_id == "other"


def test_nobody_ends_or_sees_what_is_another_persons(site: Site) -> None:
    held = site.tokens()
    number = site.access(held["access_token"]).grant_id
    with site.browser() as browser:
        page = enter(site, browser, "operator")
        assert "No app has access in your name." in page.text
        own = browser.post("/auth/manage", data={**hidden(page), "end": number})
        none = browser.post("/auth/manage", data={**hidden(page), "end": "nothing"})
        assert (own.status_code, own.headers["location"]) == (none.status_code, none.headers["location"])
    assert site.access(held["access_token"]).grant_id == number


def test_a_form_of_another_site_ends_nothing(site: Site) -> None:
    """A15"""
    held = site.tokens()
    number = site.access(held["access_token"]).grant_id
    with site.browser() as browser:
        page = enter(site, browser)
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert page.headers["cache-control"] == "no-store"
        forged = browser.post("/auth/manage", data={"csrf": "x", "end": number})
        assert forged.status_code == 403
    with site.browser() as stranger:
        answer = stranger.post("/auth/manage", data={**hidden(page), "end": number})
        assert (answer.status_code, STUDY in answer.text) == (403, False)
    assert site.access(held["access_token"]).grant_id == number


def test_the_login_is_as_guarded_as_the_other(site: Site) -> None:
    with site.browser() as browser:
        page = browser.get("/auth/manage")
        for status in (401, 401, 401, 401, 401, 429):
            answer = browser.post("/auth/manage", data={**hidden(page), "username": "admin", "password": "x"})
            assert answer.status_code == status
        assert "Too many tries" in answer.text


def test_logging_out_ends_the_session_and_what_lives_by_it(site: Site) -> None:
    """F07"""
    with site.browser() as browser:
        page = enter(site, browser)
        answer = browser.post("/auth/manage", data={**hidden(page), "logout": "1"})
        assert answer.status_code == 303
        assert "Log in" in browser.get("/auth/manage").text


def test_discovery_names_the_page(site: Site) -> None:
    """D10"""
    found = httpx.get(f"{site.url}/fhir/.well-known/smart-configuration").json()
    assert httpx.get(found["management_endpoint"]).status_code == 200

"""The way into the viewer, from outside (reference checks L01, L02, L03, L11, L13)."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
import sqlalchemy as sa

from app.smart import clients, opaque
from app.store.database import now
from app.store.tables import access_grant, launch, viewer_session
from app.viewer.registration import CLIENT_ID
from tests.unit.viewer.site import PASSWORD, STUDY, Site


def walk(browser: httpx.Client, address: str) -> list[httpx.Response]:
    """Every answer of a chain of redirects."""
    answers = [browser.get(address)]
    while answers[-1].has_redirect_location:
        answers.append(browser.get(answers[-1].headers["location"]))
    return answers


def opened(browser: httpx.Client, address: str) -> str:
    """Open a launch as a browser does and return the session's id."""
    last = walk(browser, address)[-1]
    assert last.status_code == 200, last.text
    assert re.search(r'http-equiv="refresh" content="0; url=viewer"', last.text)
    return last.url.path.split("/")[2]


def grants(site: Site) -> list[Any]:
    with site.store.read() as connection:
        return list(connection.execute(sa.select(access_grant)).mappings())


@pytest.mark.parametrize("kind", ["launch", "viewer"])
def test_a_launch_ends_in_the_viewer_of_one_study(site: Site, kind: str) -> None:
    with site.browser() as browser:
        session = opened(browser, site.open(kind))
        (page,) = walk(browser, f"/v/{session}/viewer")[1:]
        assert page.url.params["StudyInstanceUIDs"] == STUDY
        assert f'src="/v/{session}/app-config.js"' in page.text
    (grant,) = grants(site)
    assert grant["studies"] == [STUDY]
    assert grant["user_name"] == "Rita Radiologist"
    assert grant["fhir_user"] == "Practitioner/7"
    assert f"patient/ImagingStudy.rus?identifier=urn:dicom:uid|urn:oid:{STUDY}" in grant["scope"].split() or (
        "ImagingStudy.rs?" in grant["scope"] and "ImagingStudy.u?" in grant["scope"]
    )
    record = site.records[-1]
    assert (record.door, record.action, record.outcome) == ("viewer", "launch", "allowed")
    assert (record.study_uid, record.grant_id) == (STUDY, grant["id"])


def test_both_ways_grant_the_same(site: Site) -> None:
    with site.browser() as browser:
        opened(browser, site.open("launch"))
        opened(browser, site.open("viewer"))
    first, second = grants(site)
    for name in ("client_id", "user_id", "fhir_user", "patient_id", "studies", "scope", "context"):
        assert first[name] == second[name], name


def test_a_local_user_logs_in_on_the_way(site: Site) -> None:
    with site.browser() as browser:
        login = walk(browser, site.open("launch", user_id=None, fhir_user=None, user_name=""))[-1]
        hidden = dict(re.findall(r'name="(csrf|request)" value="([^"]*)"', login.text))
        form = {name: value.replace("&amp;", "&") for name, value in hidden.items()}
        sent = browser.post("/auth/login", data={**form, "username": "rita", "password": PASSWORD})
        assert sent.status_code == 303, sent.text
        opened(browser, sent.headers["location"])
    assert grants(site)[0]["user_name"] == "Rita Local"


def test_no_token_and_no_code_stays_with_the_browser(site: Site) -> None:
    with site.browser() as browser:
        answers = walk(browser, site.open())
        code = parse_qs(urlsplit(answers[1].headers["location"]).query)["code"][0]
        said = "".join(answer.text + str(answer.headers) for answer in answers[2:])
        assert "access_token" not in said
        assert "refresh_token" not in said
        assert code not in said
        for answer in answers:
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["referrer-policy"] == "no-referrer"
        kept = [cookie for cookie in browser.cookies.jar if "viewer" in cookie.name]
        assert [cookie.path for cookie in kept] == [answers[-1].url.path]
    cookie = next(text for text in answers[2].headers.get_list("set-cookie") if "isocenter_viewer" in text)
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Domain" not in cookie


def test_an_unknown_issuer_is_refused_at_once(site: Site) -> None:
    for query in ("", "?launch=x", "?iss=https://evil.example.org/fhir&launch=x", f"?iss={site.settings.fhir_base}"):
        answer = httpx.get(f"{site.url}/launch{query}")
        assert answer.status_code == 400, query
        assert "Step 1" in answer.text
        assert "set-cookie" not in answer.headers


def test_an_answer_in_another_browser_is_refused(site: Site) -> None:
    with site.browser() as first, site.browser() as second:
        callback = _callback(first, site)
        assert second.get(callback).status_code == 400
        assert first.get(callback).status_code == 303


def test_an_answer_of_another_server_is_refused(site: Site) -> None:
    with site.browser() as browser:
        callback = _callback(browser, site)
        other = callback.replace(urlencode({"iss": site.url}), urlencode({"iss": "https://evil.example.org"}))
        assert other != callback
        assert browser.get(other).status_code == 400


def test_a_launch_cannot_be_made_to_last_longer(site: Site) -> None:
    """The expiry in `state` also makes the PKCE verifier: whoever moves it loses the code."""
    with site.browser() as browser:
        callback = _callback(browser, site)
        state = parse_qs(urlsplit(callback).query)["state"][0]
        later = f"{state.rpartition('.')[0]}.{now() + 10_000_000}"
        name = next(cookie.name for cookie in browser.cookies.jar if "launch" in cookie.name).rpartition("_")[0]
        browser.cookies.set(f"{name}_{opaque.digest(later)[:16]}", later)
        answer = browser.get(callback.replace(urlencode({"state": state}), urlencode({"state": later})))
        assert (answer.status_code, "Step 4" in answer.text) == (403, True)
    assert grants(site) == []


def test_what_the_authorization_server_refuses_is_said(site: Site) -> None:
    with site.browser() as browser:
        address = site.open(study_uid=None, imaging_study_id=None)
        last = walk(browser, address)[-1]
        assert last.status_code == 403
        assert "one study only" in last.text
        assert walk(browser, site.open(client_id="ehr"))[-1].status_code == 403


def test_a_launch_opens_once(site: Site) -> None:
    address = site.open()
    with site.browser() as browser:
        opened(browser, address)
        assert walk(browser, address)[-1].status_code == 403


def test_a_handle_opens_once_and_looking_does_not_use_it_up(site: Site) -> None:
    address = site.open("viewer")
    with site.browser() as browser:
        assert browser.head(address).status_code == 200
        assert browser.get(address, headers={"Sec-Purpose": "prefetch"}).status_code == 204
        opened(browser, address)
        again = browser.get(address)
        assert again.status_code == 410
        assert "once" in again.text
        assert browser.get("/v/l/unheard-of").status_code == 410
    assert site.records[-1].outcome == "denied"


def test_an_expired_handle_opens_nothing(site: Site) -> None:
    address = site.open("viewer")
    site.store.transact(lambda connection: connection.execute(launch.update().values(expires=now() - 1)))
    assert httpx.get(address).status_code == 410


def test_a_handle_of_somebody_who_may_not_vouch_opens_nothing(site: Site) -> None:
    assert httpx.get(site.open("viewer", made_by=CLIENT_ID)).status_code == 403
    assert httpx.get(site.open("viewer", study_uid=None)).status_code == 403
    site.store.transact(lambda connection: clients.disable(connection, "ehr"))
    assert httpx.get(site.open("viewer")).status_code == 403
    with site.store.read() as connection:
        assert connection.execute(sa.select(viewer_session)).first() is None


def _callback(browser: httpx.Client, site: Site) -> str:
    authorize = browser.get(site.open()).headers["location"]
    return browser.get(authorize).headers["location"]

"""What a viewer session is worth, and when it ends (reference checks L05, L09, L10, L12, L13, GW19)."""

from __future__ import annotations

import httpx
import pytest

from app.smart import tokens
from app.store.database import now
from app.store.tables import access_grant, viewer_session
from app.viewer import sessions
from app.viewer.sessions import GUARD, IDLE
from tests.unit.viewer.site import STUDY, Site
from tests.unit.viewer.test_launch import opened, walk

MINUTE = 60_000


def age(site: Site, **values: int) -> None:
    site.store.transact(lambda connection: connection.execute(viewer_session.update().values(**values)))


def status(browser: httpx.Client, session: str, query: str = "") -> httpx.Response:
    return browser.get(f"/v/{session}/status{query}")


def test_two_sessions_in_one_browser_stay_apart(site: Site) -> None:
    with site.browser() as browser:
        first = opened(browser, site.open("viewer"))
        second = opened(browser, site.open("viewer", study_uid="1.2.3", user_name="Other Person"))
        assert status(browser, first).json()["study_uid"] == STUDY
        assert status(browser, second).json() == {
            "user": "Other Person", "study_uid": "1.2.3", "ends_in": pytest.approx(IDLE // 1000, abs=3), "final": False,
        }  # fmt: skip
        value = next(cookie.value for cookie in browser.cookies.jar if cookie.path == f"/v/{first}/")
    name = sessions.cookie_name(site.settings)
    swapped = httpx.get(f"{site.url}/v/{second}/status", headers={"Cookie": f"{name}={value}"})
    assert swapped.status_code == 401


def test_the_cookie_is_not_in_the_database(site: Site) -> None:
    with site.browser() as browser:
        opened(browser, site.open("viewer"))
        value = next(cookie.value for cookie in browser.cookies.jar if "viewer" in cookie.name)
    with site.store.read() as connection:
        assert str(value) not in repr(connection.execute(viewer_session.select()).all())


def test_an_idle_session_ends(site: Site) -> None:
    with site.browser() as browser:
        session = opened(browser, site.open("viewer"))
        age(site, seen=now() - IDLE + MINUTE)
        assert 50 <= status(browser, session).json()["ends_in"] <= 60
        # Only being asked about keeps no session alive, use does.
        assert status(browser, session, "?active=1").json()["ends_in"] > 800
        age(site, seen=now() - IDLE - 1)
        assert status(browser, session, "?active=1").status_code == 401
        page = browser.get(f"/v/{session}/viewer?StudyInstanceUIDs={STUDY}")
        assert page.status_code == 401
        assert "has ended" in page.text
        assert page.headers["content-type"].startswith("text/html")
        assert not page.has_redirect_location


def test_a_session_in_use_ends_after_its_longest_time(site: Site) -> None:
    with site.browser() as browser:
        session = opened(browser, site.open("viewer"))
        age(site, expires=now() + MINUTE)
        assert status(browser, session).json()["final"] is True
        age(site, expires=now() - 1)
        assert status(browser, session).status_code == 401


def test_a_session_ends_with_its_grant(site: Site) -> None:
    with site.browser() as browser:
        session = opened(browser, site.open("viewer"))
        with site.store.read() as connection:
            grant_id = connection.execute(access_grant.select()).mappings().one()["id"]
        site.store.transact(lambda connection: tokens.revoke_grant(connection, grant_id))
        assert status(browser, session).status_code == 401


def test_logout_ends_session_and_grant(site: Site) -> None:
    with site.browser() as browser:
        session = opened(browser, site.open("viewer"))
        headers = {"Origin": site.url, GUARD: session}
        answer = browser.post(f"/v/{session}/logout", headers=headers)
        assert answer.status_code == 204
        assert status(browser, session).status_code == 401
    with site.store.read() as connection:
        assert connection.execute(access_grant.select()).mappings().one()["revoked"] is not None
    assert (site.records[-1].action, site.records[-1].outcome) == ("logout", "allowed")


ELSEWHERE = (
    {},
    {"Sec-Fetch-Site": "same-origin"},
    {GUARD: "{session}"},
    {"Sec-Fetch-Site": "same-site", GUARD: "{session}"},
    {"Sec-Fetch-Site": "cross-site", GUARD: "{session}"},
    {"Sec-Fetch-Site": "none", GUARD: "{session}"},
    {"Origin": "http://evil.example.org", GUARD: "{session}"},
    {"Origin": "null", GUARD: "{session}"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example.org", GUARD: "{session}"},
    {"Sec-Fetch-Site": "same-origin", GUARD: "another"},
)


def test_a_write_from_elsewhere_is_refused(site: Site) -> None:
    with site.browser() as browser:
        session = opened(browser, site.open("viewer"))
        for headers in ELSEWHERE:
            sent = {name: value.format(session=session) for name, value in headers.items()}
            for path in ("logout", "dicom-web/studies"):
                answer = browser.post(f"/v/{session}/{path}", headers=sent, content=b"")
                assert answer.status_code == 403, (path, headers)
        assert status(browser, session).status_code == 200


def test_a_token_beside_the_cookie_decides_alone(site: Site) -> None:
    with site.browser() as browser:
        session = opened(browser, site.open("viewer"))
        answer = browser.get(f"/v/{session}/dicom-web/studies", headers={"Authorization": "Bearer wrong"})
        assert answer.status_code == 401


def test_a_token_in_the_address_is_dropped(site: Site) -> None:
    with site.browser() as browser:
        session = opened(browser, site.open("viewer"))
        answers = walk(browser, f"/v/{session}/viewer?token=abc&StudyInstanceUIDs={STUDY}")
        assert "token" not in str(answers[-1].url)
        assert answers[-1].status_code == 200


def test_without_a_cookie_nothing_of_the_session_is_shown(site: Site) -> None:
    with site.browser() as browser:
        session = opened(browser, site.open("viewer"))
    for path in ("viewer", "app-config.js", "status", "dicom-web/studies"):
        answer = httpx.get(f"{site.url}/v/{session}/{path}")
        assert answer.status_code == 401, path
        assert STUDY not in answer.text
    assert STUDY not in httpx.get(f"{site.url}/v/{session}/").text

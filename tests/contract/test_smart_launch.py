"""EHR launch from the outside: discovery, authorize, login, consent, code (SMART App Launch 2.2, checklist ids)."""

from __future__ import annotations

import logging
from urllib.parse import urlsplit

import httpx
import pytest

from app.access import Action, decide, study_facts
from app.smart.facts import facts
from tests.contract import smart_server
from tests.contract.smart_server import CALLBACK, SCOPE, STUDY, VIEWER_SCOPE, Site, consent, hidden, query

site = smart_server.site
DOCUMENTS = (
    "/fhir/.well-known/smart-configuration",
    "/.well-known/openid-configuration",
    "/.well-known/oauth-authorization-server",
)


def refusal(site: Site, asked: dict[str, str]) -> dict[str, str]:
    """The fields of the redirect that refuses."""
    with site.browser() as browser:
        answer = browser.get("/auth/authorize", params=asked)
    assert answer.status_code == 303, answer.text
    given = query(answer.headers["location"])
    assert "code" not in given
    return given


@pytest.mark.requirement("P4")
def test_discovery_is_open_json_and_the_three_documents_agree(site: Site) -> None:
    """D01 D02 D10 D18 D19 C01"""
    answers = [
        httpx.get(site.url + path, headers={"Accept": accept, "Origin": "https://x.example"})
        for path in DOCUMENTS
        for accept in ("text/html", "application/fhir+json", "*/*")
    ]
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.headers["content-type"].startswith("application/json") for answer in answers)
    assert all(answer.headers["access-control-allow-origin"] == "*" for answer in answers)
    first = answers[0].json()
    assert all(answer.json() == first for answer in answers)
    assert first["authorization_response_iss_parameter_supported"] is True


def test_discovery_names_what_is_served_and_nothing_unsafe(site: Site) -> None:
    """D03 D04 D05 D06 D07 D08 D12"""
    body = httpx.get(site.url + DOCUMENTS[0], headers={"Host": "evil.example"}).json()
    assert body["code_challenge_methods_supported"] == ["S256"]
    assert body["grant_types_supported"] == ["authorization_code", "refresh_token", "client_credentials"]
    assert {"launch-ehr", "sso-openid-connect", "client-confidential-asymmetric"} <= set(body["capabilities"])
    assert body["issuer"] == site.url
    assert {"RS384", "ES384"} == set(body["token_endpoint_auth_signing_alg_values_supported"])
    assert "private_key_jwt" in body["token_endpoint_auth_methods_supported"]
    ends = [value for name, value in body.items() if name.endswith(("_endpoint", "_uri"))]
    assert len(ends) == 6
    assert all(value.startswith(f"{site.url}/auth/") for value in ends)
    served = {value: httpx.request("GET", value).status_code for value in ends}
    assert set(served.values()) <= {200, 400, 405}


def test_every_supported_scope_word_can_be_granted(site: Site) -> None:
    """D09"""
    shown = httpx.get(site.url + DOCUMENTS[0]).json()["scopes_supported"]
    assert set(shown) >= set(facts().words) | set(facts().system_words)
    assert "online_access" in site.tokens()["scope"].split()
    answer = site.backend(site.assertion("archive"), "isocenter/introspect")
    assert answer.json()["scope"] == "isocenter/introspect"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_launch_goes_through_login_and_consent_to_a_code(site: Site, method: str) -> None:
    """A01 A06 A08 A15 A16 X01"""
    asked = site.asking(launch=site.launch())
    with site.browser() as browser:
        how = {"params": asked} if method == "GET" else {"data": asked}
        page = browser.request(method, "/auth/authorize", **how)
        assert page.status_code == 200
        answer = browser.post(
            "/auth/login", data={**hidden(page), "username": "radiologist", "password": smart_server.PASSWORD}
        )
        assert answer.status_code == 303
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=lax" in cookie.lower()
        page = browser.get(answer.headers["location"])
        for name, value in {
            "cache-control": "no-store",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }.items():
            assert page.headers[name] == value
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert "<script" not in page.text
        assert "patient p1" in page.text
        assert "the CT of 3 May" in page.text
        assert browser.get("/auth/static/smart.css").headers["content-type"].startswith("text/css")
        answer = browser.post("/auth/consent", data=consent(page, "allow"))
    assert answer.status_code == 303
    location = answer.headers["location"]
    assert location.startswith(CALLBACK + "&")
    given = query(location)
    assert given["state"] == asked["state"]
    assert given["iss"] == site.url
    assert len(given["code"]) >= 43


def test_a_faulty_request_is_refused_by_redirect(site: Site) -> None:
    """A02 A03 A04 A05 A19 T05"""
    for client_id in ["app", "secret"]:
        for change in [
            {"response_type": None},
            {"scope": None},
            {"aud": None},
            {"aud": "https://elsewhere.example/fhir"},
            {"resource": "https://elsewhere.example/fhir"},
            {"code_challenge": None},
            {"code_challenge": "short"},
            {"code_challenge_method": None},
            {"code_challenge_method": "plain"},
            {"response_mode": "fragment"},
            {"scope": "launch " + " ".join(f"patient/Observation.r?code=c{n}" for n in range(200))},
        ]:
            given = refusal(site, site.asking(client_id, launch="x", **change))
            assert given["error"] == "invalid_request"
            assert given["state"] == "a b+c/%20~"
            assert given["iss"] == site.url


def test_no_other_flow_is_offered(site: Site) -> None:
    """A02 A10"""
    for response_type in ["token", "code token", "id_token", "none"]:
        assert refusal(site, site.asking(response_type=response_type))["error"] == "unsupported_response_type"
        answer = site.token(grant_type="password", username="admin", password=smart_server.PASSWORD, client_id="app")
        assert answer.json()["error"] == "unsupported_grant_type"


def test_a_missing_state_is_refused(site: Site) -> None:
    """A02"""
    assert refusal(site, site.asking(state=None))["error"] == "invalid_request"


def test_a_repeated_parameter_is_refused(site: Site) -> None:
    """A07"""
    for name in ["state", "aud", "scope", "nonce", "code_challenge", "launch"]:
        asked = [*site.asking(launch="x", nonce="n").items(), (name, "again")]
        with site.browser() as browser:
            answer = browser.get("/auth/authorize", params=asked)
        assert query(answer.headers["location"])["error"] == "invalid_request"


def test_a_request_that_names_no_app_is_answered_by_a_page(site: Site) -> None:
    """A19 REG02 REG03"""
    for change in [
        {"client_id": None},
        {"client_id": "nobody"},
        {"redirect_uri": None},
        {"redirect_uri": CALLBACK + "&x=1"},
        {"redirect_uri": CALLBACK.upper()},
        {"redirect_uri": "https://evil.example"},
        {"redirect_uri": 'https://evil.example/"><ä'},
        {"client_id": "a\0b"},
        {"state": "s" * 40000},
    ]:
        with site.browser() as browser:
            answer = browser.get("/auth/authorize", params=site.asking(**change))
        assert answer.status_code == 400
        assert "location" not in answer.headers
        assert answer.headers["content-type"].startswith("text/html")


def test_a_disabled_app_is_unknown(site: Site) -> None:
    """V05"""
    token = site.tokens()["access_token"]
    site.store.transact(lambda connection: smart_server.clients.disable(connection, "app"))
    with site.browser() as browser:
        assert browser.get("/auth/authorize", params=site.asking()).status_code == 400
    with pytest.raises(smart_server.Unauthenticated):
        site.access(token)


def test_a_denial_is_told_with_state(site: Site) -> None:
    """A11"""
    with site.browser() as browser:
        page = site.log_in(browser, site.asking(launch=site.launch()))
        answer = browser.post("/auth/consent", data=consent(page, "deny"))
    given = query(answer.headers["location"])
    assert given["error"] == "access_denied"
    assert given["state"] == "a b+c/%20~"


def test_a_person_may_drop_single_scopes(site: Site) -> None:
    """A12"""
    with site.browser() as browser:
        page = site.log_in(browser, site.asking(launch=site.launch()))
        answer = browser.post("/auth/consent", data=consent(page, "allow", drop="patient/Observation.rs"))
    body = site.redeem(query(answer.headers["location"])["code"]).json()
    assert set(body["scope"].split()) == set(SCOPE.split()) - {"patient/Observation.rs"}


def test_offline_access_is_named_in_words(site: Site) -> None:
    """A13"""
    with site.browser() as browser:
        page = site.log_in(browser, site.asking(launch=site.launch(), scope=f"{SCOPE} offline_access"))
    assert "when you are away" in page.text


def test_forms_without_their_token_do_nothing(site: Site) -> None:
    """A15"""
    with site.browser() as browser:
        asked = site.asking(launch=site.launch())
        page = browser.get("/auth/authorize", params=asked)
        wrong = {**hidden(page), "csrf": "x", "username": "radiologist", "password": smart_server.PASSWORD}
        assert browser.post("/auth/login", data=wrong).status_code == 403
        page = site.log_in(browser, asked)
        answer = browser.post("/auth/consent", data={**consent(page, "allow"), "csrf": "x"})
        assert answer.status_code == 403
        assert "location" not in answer.headers


def test_wrong_passwords_are_answered_alike_and_throttled(site: Site) -> None:
    """H05"""
    with site.browser() as browser:
        page = browser.get("/auth/authorize", params=site.asking(launch=site.launch()))
        said = [
            browser.post("/auth/login", data={**hidden(page), "username": name, "password": "wrong"})
            for name in ["radiologist"] * 6 + ["nobody"]
        ]
        right = {**hidden(page), "username": "radiologist", "password": smart_server.PASSWORD}
        late = browser.post("/auth/login", data=right)
    assert [answer.status_code for answer in said] == [401] * 5 + [429, 401]
    assert said[0].text == said[-1].text
    assert late.status_code == 429


@pytest.mark.parametrize(
    "about",
    [{"client_id": "other"}, {"user_id": "technologist"}],
    ids=["another app's", "another user's"],
)
def test_a_launch_of_somebody_else_gives_no_code(site: Site, about: dict[str, str]) -> None:
    """X02"""
    asked = site.asking(launch=site.launch(**about, made_by="app") if "user_id" in about else site.launch("other"))
    with site.browser() as browser:
        first = browser.get("/auth/authorize", params=asked)
        if first.status_code == 200:
            data = {**hidden(first), "username": "radiologist", "password": smart_server.PASSWORD}
            first = browser.get(browser.post("/auth/login", data=data).headers["location"])
    assert query(first.headers["location"])["error"] in {"invalid_request", "access_denied"}


def test_a_launch_gives_one_code_only(site: Site) -> None:
    """X02"""
    launch = site.launch("viewer", user_id="radiologist", user_name="Ada")
    asked = site.asking("viewer", scope=VIEWER_SCOPE, launch=launch)
    with site.browser() as browser:
        first = query(browser.get("/auth/authorize", params=asked).headers["location"])
    assert "code" in first
    assert refusal(site, asked)["error"] == "invalid_request"
    assert refusal(site, site.asking(launch="unknown"))["error"] == "invalid_request"


def test_a_trusted_ehr_vouches_for_its_user(site: Site) -> None:
    """EHR launch without a second login"""
    launch = site.launch("viewer", user_id="ehr:42", user_name="Ada", fhir_user="Practitioner/42")
    with site.browser() as browser:
        answer = browser.get("/auth/authorize", params=site.asking("viewer", scope=VIEWER_SCOPE, launch=launch))
    body = site.redeem(query(answer.headers["location"])["code"], "viewer").json()
    access = site.access(body["access_token"])
    assert (access.user_id, access.fhir_user) == ("ehr:42", "Practitioner/42")
    # The EHR is registered with these, so its users have them; nothing else.
    assert "isocenter/sign" in access.rights
    assert decide(access, Action("u", "ImagingStudy"), study_facts(STUDY, "p1"))


def test_a_client_without_the_right_vouches_for_nobody(site: Site) -> None:
    launch = site.launch("viewer", user_id="radiologist", made_by="app")
    with site.browser() as browser:
        page = browser.get("/auth/authorize", params=site.asking("viewer", scope=VIEWER_SCOPE, launch=launch))
    assert page.status_code == 200
    assert 'name="password"' in page.text


def test_a_launch_for_one_user_is_refused_in_anothers_session(site: Site) -> None:
    """X02"""
    with site.browser() as browser:
        site.log_in(browser, site.asking(launch=site.launch()), "technologist")
        launch = site.launch("viewer", user_id="radiologist")
        answer = browser.get("/auth/authorize", params=site.asking("viewer", scope=VIEWER_SCOPE, launch=launch))
    assert query(answer.headers["location"])["error"] == "access_denied"


def viewer_tokens(site: Site, user: str) -> dict[str, object]:
    launch = site.launch("viewer", user_id=user, user_name=user)
    with site.browser() as browser:
        answer = browser.get("/auth/authorize", params=site.asking("viewer", scope=VIEWER_SCOPE, launch=launch))
    return site.redeem(query(answer.headers["location"])["code"], "viewer").json()


def test_a_study_bound_app_gets_one_study_whatever_it_asks(site: Site) -> None:
    """S13 T15 X09 X10 X13"""
    body = viewer_tokens(site, "radiologist")
    assert str(body["scope"]).split() == [
        "launch",
        "openid",
        "fhirUser",
        "online_access",
        "isocenter/sign",
        f"patient/ImagingStudy.rs?identifier=urn:dicom:uid|urn:oid:{STUDY}",
        "patient/Observation.rs?derived-from=ImagingStudy/i1",
        "patient/DiagnosticReport.rs?based-on=ServiceRequest/o1",
        "patient/Patient.r",
        "patient/ServiceRequest.r?_id=o1",
        "patient/Endpoint.r",
        f"patient/ImagingStudy.u?identifier=urn:dicom:uid|urn:oid:{STUDY}",
    ]
    assert body["expires_in"] == 900
    assert body["fhirContext"] == [{"reference": "ImagingStudy/i1"}]
    access = site.access(str(body["access_token"]))
    assert access.studies == {STUDY}
    assert decide(access, Action("r", "ImagingStudy"), study_facts(STUDY, "p1"))
    assert not decide(access, Action("r", "ImagingStudy"), study_facts("1.2.3", "p1"))
    assert not decide(access, Action("c", "ImagingStudy"), study_facts(STUDY, "p1"))


def test_writing_pixels_and_signing_follow_the_role(site: Site) -> None:
    """S08"""
    for user, writes, signs in [
        ("radiologist", True, True),
        ("technologist", True, False),
        ("operator", False, False),
        ("admin", False, False),
    ]:
        access = site.access(str(viewer_tokens(site, user)["access_token"]))
        assert decide(access, Action("u", "ImagingStudy"), study_facts(STUDY, "p1")) is writes
        assert ("isocenter/sign" in access.rights) is signs
        assert decide(access, Action("r", "ImagingStudy"), study_facts(STUDY, "p1"))


def test_a_study_bound_app_is_not_launched_without_a_study(site: Site) -> None:
    """S13"""
    launch = site.launch("viewer", user_id="radiologist", study_uid=None, imaging_study_id=None)
    given = refusal(site, site.asking("viewer", scope=VIEWER_SCOPE, launch=launch))
    assert given["error"] == "access_denied"


def test_scopes_are_cut_and_malformed_ones_dropped(site: Site) -> None:
    """S01 S02 S03"""
    wish = "launch patient/ImagingStudy.read patient/Observation.dus patient/Patient.cruds system/*.rs patient/Nope.?x"
    body = site.tokens(scope=wish)
    assert body["scope"].split() == ["launch", "patient/ImagingStudy.read", "patient/Patient.rs"]


def test_an_app_may_look_like_its_surroundings(site: Site) -> None:
    """X07"""
    address = site.tokens()["smart_style_url"]
    answer = httpx.get(address, headers={"Origin": "https://anywhere.example"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "immutable" in answer.headers["cache-control"]
    assert answer.json()["color_text"].startswith("#")


def test_nobody_is_asked_with_prompt_none(site: Site) -> None:
    """O08"""
    assert refusal(site, site.asking(launch=site.launch(), prompt="none"))["error"] == "login_required"


def test_the_authorization_endpoint_has_no_cors(site: Site) -> None:
    """C02 C05 C08"""
    origin = f"https://{urlsplit(CALLBACK).netloc}"
    with site.browser() as browser:
        page = browser.get("/auth/authorize", params=site.asking(launch=site.launch()), headers={"Origin": origin})
        assert "access-control-allow-origin" not in page.headers
        for asking, allowed in ((origin, origin), ("https://evil.example", None)):
            answer = browser.post("/auth/token", data={"grant_type": "x"}, headers={"Origin": asking})
            assert answer.headers.get("access-control-allow-origin") == allowed
            assert "access-control-allow-credentials" not in answer.headers


def test_logout_ends_the_session_and_its_grants(site: Site) -> None:
    """F07"""
    with site.browser() as browser:
        page = site.log_in(browser, site.asking(launch=site.launch()))
        answer = browser.post("/auth/consent", data=consent(page, "allow"))
        token = site.redeem(query(answer.headers["location"])["code"]).json()
        assert site.access(token["access_token"]).user_id == "radiologist"
        assert browser.post("/auth/logout", data={"csrf": "x"}).status_code == 403
        assert browser.post("/auth/logout", data={"csrf": hidden(page)["csrf"]}).status_code == 204
    with pytest.raises(smart_server.Unauthenticated):
        site.access(token["access_token"])
    assert site.refresh(token["refresh_token"]).json()["error"] == "invalid_grant"


def test_a_disabled_user_loses_every_grant(site: Site) -> None:
    """V05"""
    token = site.tokens()["access_token"]
    code = site.code()
    site.store.transact(lambda connection: smart_server.users.disable(connection, "radiologist"))
    with pytest.raises(smart_server.Unauthenticated):
        site.access(token)
    assert site.redeem(code).json()["error"] == "invalid_grant"


def test_no_secret_reaches_a_log_or_the_audit_trail(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """H05 T16"""
    with caplog.at_level(logging.DEBUG):
        body = site.tokens()
        site.refresh(body["refresh_token"])
        site.redeem("unknown-code")
        site.redeem(site.code("secret"), None, auth=("secret", site.secret))
        site.backend(site.assertion())
        site.token(grant_type="refresh_token", refresh_token=body["refresh_token"], client_id="app")
    # The client's own log lines are not the server's; the address line of a request is for main to leave out.
    ours = [record for record in caplog.records if not record.name.startswith(("http", "uvicorn.access"))]
    written = " ".join(record.getMessage() for record in ours) + repr(site.records)
    assert "authlib.oauth2.rfc6749.authenticate_client" in {record.name for record in ours}
    site.said.append(smart_server.PASSWORD)
    assert len(site.said) > 8
    assert not [secret for secret in site.said if secret in written]
    assert "argon2" not in written
    rows = smart_server.dump(site.store)
    assert not [secret for secret in site.said if secret in rows]

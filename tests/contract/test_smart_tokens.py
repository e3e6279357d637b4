"""The token, introspection and revocation endpoints from outside (RFC 6749, 7009, 7523, 7636, 7662; checklist ids)."""

from __future__ import annotations

import base64
import hmac
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

from app.errors import Unauthenticated
from app.smart import keys, opaque, scopes, tokens
from app.store.tables import access_grant, access_token, authorization_code
from tests.contract import smart_server
from tests.contract.smart_server import CALLBACK, SCOPE, STUDY, Site, challenge

site = smart_server.site
JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


def age(site: Site, table: Any, seconds: int) -> None:
    """Let rows be older than they are."""
    expires = table.update().values(expires=table.c.expires - seconds * 1000)
    site.store.transact(lambda connection: connection.execute(expires))


def test_a_code_and_its_verifier_give_opaque_tokens(site: Site) -> None:
    """T01 T02 T03 T15 T16 S14"""
    answer = site.redeem(site.code())
    assert answer.status_code == 200
    assert answer.headers["pragma"] == "no-cache"
    body = answer.json()
    assert body["token_type"] == "Bearer"
    assert body["scope"] == SCOPE
    assert 3590 <= body["expires_in"] <= 3600
    assert len(base64.urlsafe_b64decode(body["access_token"] + "==")) == 32
    assert opaque.digest(body["access_token"]) in smart_server.dump(site.store)
    assert body["access_token"] not in smart_server.dump(site.store)


def test_a_wrong_verifier_gets_nothing(site: Site) -> None:
    """T04 T05"""
    for client_id in ["app", "secret"]:
        for verifier in [None, "", "w" * 64, challenge("v" * 64), "v" * 64 + "\n", "v" * 200]:
            auth = ("secret", site.secret) if client_id == "secret" else None
            code = site.code(client_id)
            named = None if auth else client_id
            answer = site.redeem(code, named, code_verifier=verifier, auth=auth)
            assert answer.status_code == 400
            assert answer.json()["error"] in {"invalid_grant", "invalid_request"}
            assert site.redeem(code, named, auth=auth).status_code == 200


def test_a_code_is_bound_to_its_redirect_address(site: Site) -> None:
    """T07 T11"""
    for change in [{"redirect_uri": CALLBACK + "x"}, {"redirect_uri": None}, {"code": "unknown"}]:
        answer = site.token(
            **{
                "grant_type": "authorization_code",
                "client_id": "app",
                "code": site.code(),
                "redirect_uri": CALLBACK,
                "code_verifier": "v" * 64,
                **change,
            }
        )
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")


def test_a_code_is_bound_to_its_client(site: Site) -> None:
    """T08"""
    code = site.code()
    assert site.redeem(code, "other").json()["error"] == "invalid_grant"
    assert site.redeem(code, "nobody").json()["error"] == "invalid_client"
    assert site.redeem(code, "app").status_code == 200


def test_a_second_use_of_a_code_ends_the_tokens_of_the_first(site: Site) -> None:
    """T09 A09"""
    code = site.code()
    body = site.redeem(code).json()
    assert site.access(body["access_token"]).client_id == "app"
    assert site.redeem(code).json()["error"] == "invalid_grant"
    with pytest.raises(Unauthenticated):
        site.access(body["access_token"])
    assert site.refresh(body["refresh_token"]).json()["error"] == "invalid_grant"


def test_of_parallel_uses_of_one_code_exactly_one_succeeds(site: Site) -> None:
    """T10"""
    code = site.code()
    with ThreadPoolExecutor(8) as pool:
        said = [answer.status_code for answer in pool.map(lambda _: site.redeem(code), range(8))]
    assert sorted(said) == [200] + [400] * 7


def test_a_code_dies_after_a_minute(site: Site) -> None:
    """A09"""
    code = site.code()
    age(site, authorization_code, 61)
    assert site.redeem(code).json()["error"] == "invalid_grant"


def test_the_token_endpoint_takes_posted_forms_only(site: Site) -> None:
    """T12 T14 A07"""
    url = f"{site.url}/auth/token"
    assert httpx.get(url).status_code == 405
    assert httpx.post(url, json={"grant_type": "authorization_code"}).json()["error"] == "invalid_request"
    assert httpx.post(url, data={"grant_type": "magic"}).json()["error"] == "unsupported_grant_type"
    assert httpx.post(url, data={"x": "y"}).json()["error"] == "invalid_request"
    twice = httpx.post(url, data={"grant_type": ["authorization_code", "refresh_token"]})
    assert twice.json()["error"] == "invalid_request"
    fields = {"grant_type": "authorization_code", "code": site.code("secret"), "redirect_uri": CALLBACK}
    asked = httpx.post(
        url, params={"client_id": "secret", "client_secret": site.secret}, data={**fields, "code_verifier": "v" * 64}
    )
    assert asked.status_code == 400
    assert httpx.post(url, data={"grant_type": "x" * 40000}).status_code == 400
    assert httpx.post(url, content=b"\xff=%00", headers={"content-type": "application/x-www-form-urlencoded"}).is_error


def test_a_symmetric_client_proves_itself_by_basic_or_post(site: Site) -> None:
    """T13"""
    assert site.redeem(site.code("secret"), None, auth=("secret", site.secret)).status_code == 200
    assert site.redeem(site.code("secret"), "secret", client_secret=site.secret).status_code == 200
    code = site.code("secret")
    for auth in (("secret", "wrong"), ("nobody", site.secret), ("a\0b", "c")):
        answer = site.redeem(code, None, auth=auth)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
        assert answer.headers["www-authenticate"].startswith("Basic")
    assert site.redeem(code, "secret").json()["error"] == "invalid_client"
    assert site.redeem(code, "secret", client_secret="wrong").json()["error"] == "invalid_client"


def test_broken_credentials_are_an_invalid_client(site: Site) -> None:
    """T13"""
    for header in ["Basic %%%", "Basic /w==", "Basic", "Bearer x", "basic OmE="]:
        fields = {"grant_type": "authorization_code", "code": "x"}
        answer = httpx.post(f"{site.url}/auth/token", data=fields, headers={"Authorization": header})
        assert answer.status_code == 401
        assert answer.json()["error"] == "invalid_client", answer.text


def test_an_id_token_says_who_by_a_published_key(site: Site) -> None:
    """O01 O02 O03 O04 O05 O06 O08"""
    body = site.tokens(nonce="n-0")
    published = httpx.get(f"{site.url}/.well-known/openid-configuration").json()
    assert "RS256" in published["id_token_signing_alg_values_supported"]
    assert published["subject_types_supported"] == ["public"]
    jwks = httpx.get(published["jwks_uri"]).json()
    assert all(key["kty"] == "RSA" and "d" not in key for key in jwks["keys"])
    token = jwt.decode(body["id_token"], KeySet.import_key_set(jwks), algorithms=["RS256"])
    assert token.header["kid"] in {key["kid"] for key in jwks["keys"]}
    claims = token.claims
    assert claims["iss"] == published["issuer"] == site.url
    assert claims["aud"] == "app"
    assert claims["sub"] == "radiologist"
    assert claims["nonce"] == "n-0"
    assert claims["fhirUser"] == f"{site.url}/fhir/Practitioner/radiologist"
    assert claims["iat"] <= time.time() < claims["exp"]
    assert claims["auth_time"] <= claims["iat"]


def test_without_openid_there_is_no_id_token(site: Site) -> None:
    """O01"""
    assert "id_token" not in site.tokens(scope="launch patient/Patient.r")


def test_a_rotated_key_still_verifies_what_it_signed(site: Site) -> None:
    """O09"""
    body = site.tokens()
    keys.rotate(site.store, site.settings)
    for signed in (body, site.tokens()):
        jwks = KeySet.import_key_set(httpx.get(f"{site.url}/auth/jwks").json())
        assert jwt.decode(signed["id_token"], jwks, algorithms=["RS256"]).claims["sub"] == "radiologist"


def test_a_refresh_gives_the_same_scope_and_patient(site: Site) -> None:
    """F01 F08"""
    first = site.tokens()
    second = site.refresh(first["refresh_token"]).json()
    assert second["scope"] == first["scope"]
    assert second["patient"] == "p1"
    assert second["access_token"] != first["access_token"]
    assert second["refresh_token"] != first["refresh_token"]
    assert site.access(second["access_token"]).grant_id == site.access(first["access_token"]).grant_id


def test_a_refresh_may_ask_for_less_but_not_for_more(site: Site) -> None:
    """F01 F02"""
    token = site.tokens()["refresh_token"]
    assert site.refresh(token, scope=f"{SCOPE} patient/Task.r").json()["error"] == "invalid_scope"
    less = site.refresh(token, scope="patient/ImagingStudy.r patient/Observation.rs?category=laboratory").json()
    assert less["scope"] == "patient/ImagingStudy.r patient/Observation.rs?category=laboratory"
    access = site.access(less["access_token"])
    assert {scopes.render(scope) for scope in access.scopes} == set(less["scope"].split())
    again = site.refresh(less["refresh_token"]).json()
    assert again["scope"] == SCOPE


def test_a_refresh_token_is_bound_to_its_client(site: Site) -> None:
    """F03 F04"""
    body = site.tokens()
    assert site.refresh(body["refresh_token"], "other").json()["error"] == "invalid_grant"
    assert site.refresh("random").json()["error"] == "invalid_grant"
    assert site.refresh(body["access_token"]).json()["error"] == "invalid_grant"
    assert site.refresh(body["refresh_token"]).status_code == 200


@pytest.mark.parametrize("client_id", ["app", "secret"])
def test_an_old_refresh_token_ends_its_whole_family(site: Site, client_id: str) -> None:
    """F05"""
    auth = ("secret", site.secret) if client_id == "secret" else None
    named = None if auth else client_id

    def refresh(token: str) -> httpx.Response:
        return site.token(grant_type="refresh_token", refresh_token=token, client_id=named, auth=auth)

    first = site.redeem(site.code(client_id), named, auth=auth).json()
    second = refresh(first["refresh_token"]).json()
    assert refresh(first["refresh_token"]).json()["error"] == "invalid_grant"
    assert refresh(second["refresh_token"]).json()["error"] == "invalid_grant"
    with pytest.raises(Unauthenticated):
        site.access(second["access_token"])


def test_of_parallel_refreshes_exactly_one_succeeds(site: Site) -> None:
    """F05"""
    token = site.tokens()["refresh_token"]
    with ThreadPoolExecutor(4) as pool:
        said = [answer.status_code for answer in pool.map(lambda _: site.refresh(token), range(4))]
    assert sorted(said) == [200, 400, 400, 400]


def test_refresh_tokens_need_an_access_scope_for_them(site: Site) -> None:
    """F06 F09"""
    assert "refresh_token" not in site.tokens(scope="launch patient/Patient.r")
    offline = site.tokens(scope="launch offline_access patient/Patient.r")
    age(site, access_grant, 89 * 86400)
    age(site, access_token, 89 * 86400)
    assert site.refresh(offline["refresh_token"]).status_code == 200


def test_an_expired_token_opens_nothing(site: Site) -> None:
    body = site.tokens()
    age(site, access_token, 3601)
    with pytest.raises(Unauthenticated):
        site.access(body["access_token"])


@pytest.mark.parametrize("alg", ["RS384", "ES384"])
def test_a_backend_service_gets_system_scopes_for_five_minutes(site: Site, alg: str) -> None:
    """B03 B04 B10 F06"""
    answer = site.backend(site.assertion(alg=alg), "system/ImagingStudy.rs system/Patient.rs system/Task.rs launch")
    body = answer.json()
    assert body["scope"] == "system/ImagingStudy.rs system/Patient.r"
    assert body["expires_in"] <= 300
    assert "refresh_token" not in body
    access = site.access(body["access_token"])
    assert (access.client_id, access.user_id, access.patient_id) == ("robot", None, None)


def test_a_faulty_backend_request_is_refused(site: Site) -> None:
    """B01 B02"""
    for changes, error in [
        ({"grant_type": "not_a_grant_type"}, "unsupported_grant_type"),
        ({"client_assertion_type": "not_an_assertion_type"}, "invalid_client"),
        ({"client_assertion": "not.a.jwt"}, "invalid_client"),
        ({"client_assertion": "\x00"}, "invalid_request"),
        ({"client_assertion": "é.é.é"}, "invalid_client"),
        ({"client_assertion": "e30.bnVsbA.x"}, "invalid_client"),
        ({"client_assertion": "eyJhbGciOiJSUzM4NCJ9.eyJzdWIiOiAiXHVkODAwIn0.AA"}, "invalid_client"),
        ({"scope": "system/Task.rs"}, "invalid_scope"),
        ({"scope": ""}, "invalid_scope"),
    ]:
        answer = site.backend(site.assertion(), **changes)
        assert answer.status_code in {400, 401}
        assert answer.json()["error"] == error


def test_a_faulty_assertion_is_an_invalid_client(site: Site) -> None:
    """B06 B08"""
    for changes in [
        {"aud": "https://elsewhere.example/token"},
        {"aud": None},
        {"iss": "other"},
        {"sub": "nobody", "iss": "nobody"},
        {"sub": "app", "iss": "app"},
        {"sub": None},
        {"sub": ["robot"]},
        {"jti": None},
        {"jti": 7},
        {"jti": "a\0b"},
        {"jti": "x" * 300},
        {"exp": None},
        {"exp": "soon"},
        {"exp": 1},
        {"exp": int(time.time()) + 365 * 86400},
        {"exp": 10**400},
        {"nbf": 2**33},
        {"header": {"kid": None}},
        {"header": {"kid": "ec"}},
        {"header": {"kid": "unknown"}},
        {"header": {"jku": "https://evil.example/jwks"}},
    ]:
        answer = site.backend(site.assertion(**changes))
        assert answer.status_code in {400, 401}
        assert answer.json()["error"] == "invalid_client", answer.text


def test_only_registered_keys_and_named_algorithms_verify(site: Site) -> None:
    """B05 B06"""
    claims = {"iss": "robot", "sub": "robot", "aud": f"{site.url}/auth/token", "exp": int(time.time()) + 60}
    stranger = RSAKey.generate_key(2048, {"kid": "rsa"})
    own = smart_server.KEYS["RS384"]
    for alg, key in (("RS384", stranger), ("RS256", own), ("PS384", own)):
        signed = jwt.encode({"alg": alg, "kid": "rsa"}, {**claims, "jti": alg}, key, algorithms=[alg])
        assert site.backend(signed).json()["error"] == "invalid_client"
    public = own.as_pem(private=False)
    for alg in ("HS256", "HS384", "none"):
        parts = ({"alg": alg, "kid": "rsa"}, {**claims, "jti": alg})
        text = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts)
        mac = hmac.digest(public, text.encode(), "sha384" if alg == "HS384" else "sha256") if alg != "none" else b""
        signed = f"{text}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
        assert site.backend(signed).json()["error"] == "invalid_client"
    assert site.backend(site.assertion()).status_code == 200


def test_an_assertion_is_used_once_also_in_parallel(site: Site) -> None:
    """B07"""
    assertion = site.assertion()
    with ThreadPoolExecutor(4) as pool:
        said = [answer.status_code for answer in pool.map(lambda _: site.backend(assertion), range(4))]
    assert sorted(said) == [200, 400, 400, 400]


def test_clients_without_a_key_get_no_token_for_themselves(site: Site) -> None:
    """B11"""
    for fields, auth in (({}, ("secret", site.secret)), ({"client_id": "app"}, None)):
        answer = site.token(auth, grant_type="client_credentials", scope="system/*.rs", **fields)
        assert answer.json()["error"] == "invalid_client", answer.text
    answer = site.backend(site.assertion("ehr"), "system/ImagingStudy.rs")
    assert answer.json()["error"] == "invalid_scope"
    assert site.backend(site.assertion("ehr"), "isocenter/launch").json()["scope"] == "isocenter/launch"


def test_the_assertion_itself_opens_nothing(site: Site) -> None:
    """B13"""
    with pytest.raises(Unauthenticated):
        site.access(site.assertion())


def test_a_listed_backend_service_sees_its_patients_only(site: Site) -> None:
    """B12"""
    listed = smart_server.Client(
        "robot", "Robot", "asymmetric", scope="system/*.rs", jwks=smart_server.JWKS, access="listed", patients=("p1",)
    )
    site.store.transact(lambda connection: smart_server.clients.ensure_client(connection, listed))
    body = site.backend(site.assertion(), "system/ImagingStudy.rs system/Patient.r system/*.rs").json()
    assert body["scope"] == "system/ImagingStudy.rs?patient=Patient/p1 system/Patient.r?_id=p1"


def introspect(site: Site, token: str, **how: Any) -> httpx.Response:
    fields = {"token": token, **how.pop("fields", {})}
    return httpx.post(f"{site.url}/auth/introspect", data=fields, **how)


def asserted(site: Site, client_id: str) -> dict[str, str]:
    return {"client_assertion_type": JWT_BEARER, "client_assertion": site.assertion(client_id)}


def test_introspection_repeats_the_token_response(site: Site) -> None:
    """I01 I02 I03 I04 I08 S14"""
    body = site.tokens()
    answer = introspect(site, body["access_token"], fields=asserted(site, "archive"))
    said = answer.json()
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert said["active"] is True
    assert said["scope"] == body["scope"]
    assert said["client_id"] == "app"
    assert abs(said["exp"] - time.time() - body["expires_in"]) < 15
    for name in ("patient", "fhirContext", "need_patient_banner", "authorization_details"):
        assert said[name] == body[name]
    assert (said["iss"], said["sub"]) == (site.url, "radiologist")
    assert said["fhirUser"].endswith("/fhir/Practitioner/radiologist")


def test_introspection_carries_the_study_restriction(site: Site) -> None:
    """I08"""
    with site.browser() as browser:
        asked = site.asking(
            "viewer", scope=smart_server.VIEWER_SCOPE, launch=site.launch("viewer", user_id="radiologist")
        )
        code = smart_server.query(browser.get("/auth/authorize", params=asked).headers["location"])["code"]
    token = site.redeem(code, "viewer").json()["access_token"]
    said = introspect(site, token, fields=asserted(site, "archive")).json()
    assert said["authorization_details"][1]["identifier"] == [f"urn:oid:{STUDY}"]
    assert f"patient/ImagingStudy.rs?identifier=urn:dicom:uid|urn:oid:{STUDY}" in said["scope"].split()


def test_introspection_tells_nothing_of_what_is_not_valid_or_foreign(site: Site) -> None:
    """I05"""
    mine = site.redeem(site.code("secret"), None, auth=("secret", site.secret)).json()["access_token"]
    foreign = site.tokens()["access_token"]
    auth = ("secret", site.secret)
    assert introspect(site, mine, auth=auth).json()["active"] is True
    for token in ("unknown", foreign):
        assert introspect(site, token, auth=auth).json() == {"active": False}
    age(site, access_token, 3601)
    assert introspect(site, mine, auth=auth).json() == {"active": False}


def test_a_bearer_with_the_right_may_introspect(site: Site) -> None:
    """I06"""
    token = site.tokens()["access_token"]
    right = site.backend(site.assertion("archive"), "isocenter/introspect").json()["access_token"]
    assert introspect(site, token, headers={"Authorization": f"Bearer {right}"}).json()["active"] is True
    for wrong in (token, "unknown"):
        assert introspect(site, token, headers={"Authorization": f"Bearer {wrong}"}).status_code == 401


def test_introspection_needs_a_caller(site: Site) -> None:
    """I07"""
    token = site.tokens()["access_token"]
    for answer in (introspect(site, token), introspect(site, token, fields={"client_id": "app"})):
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
    assert introspect(site, "", auth=("secret", site.secret)).json()["error"] == "invalid_request"


def revoke(site: Site, token: str, client_id: str = "app", **fields: str) -> httpx.Response:
    return httpx.post(f"{site.url}/auth/revoke", data={"token": token, "client_id": client_id, **fields})


@pytest.mark.parametrize("which", ["access_token", "refresh_token"])
def test_revoking_a_token_ends_its_grant(site: Site, which: str) -> None:
    """V01 V02 V03"""
    body = site.tokens()
    assert revoke(site, body[which], token_type_hint="nonsense").status_code == 200
    with pytest.raises(Unauthenticated):
        site.access(body["access_token"])
    assert site.refresh(body["refresh_token"]).json()["error"] == "invalid_grant"
    assert revoke(site, body[which]).status_code == 200


def test_unknown_and_foreign_tokens_are_revoked_for_nobody(site: Site) -> None:
    """V01"""
    token = site.tokens()["access_token"]
    assert revoke(site, "unknown").status_code == 200
    assert revoke(site, token, "other").status_code == 200
    assert site.access(token).client_id == "app"
    answer = revoke(site, token, "secret")
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


def test_a_grant_opened_in_process_works_like_any_other(site: Site) -> None:
    def open_one(connection: Any) -> tuple[str, dict[str, Any]]:
        grant_id = tokens.open_grant(
            connection,
            client_id="viewer",
            user=smart_server.users.User("ehr:1", "Ada", fhir_user="Practitioner/1"),
            patient_id="p1",
            studies=[STUDY],
            scope="patient/ImagingStudy.rs",
            context={},
            lifetime=60,
        )
        return grant_id, tokens.issue(connection, grant_id, seconds=900)

    grant_id, body = site.store.transact(open_one)
    access = site.access(body["access_token"])
    assert (access.grant_id, access.studies, access.fhir_user) == (grant_id, {STUDY}, "Practitioner/1")
    assert body["expires_in"] <= 60
    site.store.transact(lambda connection: tokens.revoke_grant(connection, grant_id))
    with pytest.raises(Unauthenticated):
        site.access(body["access_token"])

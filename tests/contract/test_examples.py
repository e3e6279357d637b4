"""Every example is run as its page says: against one real server, a real Orthanc, and Node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.settings import Settings
from tests.contract import conversation
from tests.processes import answers, free_port, program, running
from tests.story.installation import Installation, installed

EXAMPLES = Path(__file__).parents[2] / "examples"
ALL = "system/*.cruds isocenter/launch isocenter/sign"
PERSON = "user/*.rs user/ImagingStudy.cu user/Observation.cud"

pytestmark = pytest.mark.orthanc


def example(*words: str) -> str:
    """Run one_order.py as a program of its own; its standard output."""
    command = [sys.executable, str(EXAMPLES / "one_order.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """One server for all examples, without the demo, with the clients that the pages register."""
    program("/usr/sbin/Orthanc")
    folder = tmp_path_factory.mktemp("examples")
    with installed(folder, ISOCENTER_DEMO="false") as made:
        jwks = folder / "ris.jwks.json"
        jwks.write_text(example("--key", str(key_of(made)), "--make-key"))
        made.isocenter("client", "add", "--id", "ris", "--jwks", str(jwks), "--scope", f"{ALL} {PERSON}")
        guest = ("client", "add", "--id", "guest", "--jwks", str(jwks), "--scope", "system/*.rs")
        made.isocenter(*guest, "--access", "listed", "--study", "1.2.3")
        made.start()
        yield made


def key_of(site: Installation) -> Path:
    return site.folder / "ris.key.json"


def token(site: Installation, client: str, scope: str) -> str:
    words = ("--key", str(key_of(site)), "--base", site.base, "--client", client, "--scope", scope, "--token")
    return example(*words).strip()


def test_one_order_lives_its_whole_life_from_outside(site: Installation) -> None:
    worklist, archive = site.settings.dicom_port, site.settings.orthanc_dicom_port
    words = ("--worklist", f"ISOCENTER@127.0.0.1:{worklist}", "--archive", f"ORTHANC@127.0.0.1:{archive}")
    told = example("--key", str(key_of(site)), "--base", site.base, *words)
    steps = [line.split()[0] for line in told.splitlines()]
    assert steps == ["order", "worklist", "images", "study", "viewer", "observation", "report", "pdf"]


def test_the_conversations_go_as_they_are_written(site: Installation) -> None:
    known = {
        "base": site.base,
        "token": token(site, "ris", "system/*.cruds"),
        "listed_token": token(site, "guest", "system/*.rs"),
        "mrn": uuid.uuid4().hex[:12],
    }
    exchanges = [
        exchange
        for path in sorted((EXAMPLES / "conversations").glob("*.http"))
        for exchange in conversation.read(path.read_text())
    ]
    assert len(exchanges) >= 20
    with httpx.Client(timeout=30, trust_env=False) as client:
        for exchange in exchanges:
            exchange.play(client, known)


def test_a_conversation_that_goes_otherwise_is_noticed(site: Installation) -> None:
    wrong = '[Asserts]\njsonpath "$.fhirVersion" == "5.0.0"'
    with httpx.Client(timeout=30, trust_env=False) as client:
        for line in ("HTTP 404", f"HTTP 200\n{wrong}"):
            [exchange] = conversation.read(f"GET {site.base}/fhir/metadata\n{line}\n")
            with pytest.raises(AssertionError, match="/fhir/metadata"):
                exchange.play(client, {})


def test_orthanc_starts_with_the_example_and_isocenter_reaches_it(site: Installation, tmp_path: Path) -> None:
    example = json.loads((EXAMPLES / "orthanc.json").read_text())
    [(user, password)] = example["RegisteredUsers"].items()
    http = free_port()
    moved = {"HttpPort": http, "DicomPort": free_port(), "StorageDirectory": "db", "IndexDirectory": "db"}
    (tmp_path / "orthanc.json").write_text(json.dumps(example | moved))
    url, log = f"http://127.0.0.1:{http}", tmp_path / "orthanc.log"
    command = [program("/usr/sbin/Orthanc"), str(tmp_path / "orthanc.json")]
    with (
        running(command, log, cwd=tmp_path) as process,
        httpx.Client(base_url=url, auth=(user, password), trust_env=False) as client,
    ):
        answers(process, log, lambda: up(client), "Orthanc")
        assert sorted(client.get("/modalities").json()) == ["ct1", "workstation"]
        assert client.get("/peers").json() == ["second-site"]
        assert client.get("/dicom-web/studies").json() == []
        assert httpx.get(f"{url}/system", trust_env=False).status_code == 401
        site.environment |= {
            "ISOCENTER_ORTHANC_URL": url,
            "ISOCENTER_ORTHANC_USERNAME": user,
            "ISOCENTER_ORTHANC_PASSWORD": password,
        }
        try:
            assert f"at {url}" in site.isocenter("check")
        finally:
            for name in ("URL", "USERNAME", "PASSWORD"):
                del site.environment[f"ISOCENTER_ORTHANC_{name}"]


def up(client: httpx.Client) -> bool:
    try:
        return client.get("/system").is_success
    except httpx.TransportError:
        return False


def test_the_settings_of_a_hospital_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ISOCENTER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ISOCENTER_CONFIG", str(EXAMPLES / "isocenter.toml"))
    settings = Settings()
    assert settings.public_url == "https://imaging.example.org"
    assert settings.https
    assert settings.default_authority("mrn").dicom_issuer == "HOSP"
    assert settings.default_authority("accession").dicom_issuer == "RIS"
    assert [one.fhir_system for one in settings.authorities if one.kind == "mrn"] == [
        "http://hospital.example.org/mrn",
        "http://clinic.example.org/patients",
    ]
    assert settings.hl7["connection"][0].port == 2576


def test_the_viewers_configuration_is_read_by_node() -> None:
    beside = Path(sys.executable).with_name("node")
    node = program(str(beside) if beside.exists() else "node")
    code = "const window = {}; eval(require('fs').readFileSync(0, 'utf8')); console.log(JSON.stringify(window.config))"
    source = (EXAMPLES / "ohif-app-config.js").read_text()
    done = subprocess.run([node, "-e", code], input=source, capture_output=True, text=True, timeout=60, check=True)
    config = json.loads(done.stdout)
    [login], [data] = config["oidc"], config["dataSources"]
    assert login["response_type"] == "code"
    assert login["extraQueryParams"]["aud"] == f"{login['authority']}/fhir"
    assert data["configuration"]["qidoRoot"] == data["configuration"]["wadoRoot"] == f"{login['authority']}/dicom-web"
    assert config["defaultDataSourceName"] == data["sourceName"]

"""The judges see what they are there for, and what they have seen once they need not see again."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.recorder import Recorder, listen
from tests.scripts import script

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "judge.py"
STUDY: dict[str, Any] = {
    "resourceType": "ImagingStudy",
    "id": "a",
    "meta": {"versionId": "1", "lastUpdated": "2026-03-01T10:00:00.000Z"},
    "status": "available",
    "subject": {"reference": "Patient/p"},
}


judge = script("judge")


def kept(folder: Path, *bodies: str) -> Path:
    """A folder as a test run leaves it."""
    with gzip.open(folder / "main.jsonl.gz", "wt") as output:
        for body in bodies:
            output.write(json.dumps({"test": "t", "asked": "GET fhir/x", "status": 200, "body": body}) + "\n")
    return folder


def test_a_valid_resource_is_valid_for_every_judge(tmp_path: Path) -> None:
    case = judge.gather(kept(tmp_path, json.dumps(STUDY)))

    assert case.findings == []
    for name in judge.FOREIGN:
        assert judge.ask(name, case) == [], name


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("medplum", {"status": None}, "Missing required property"),
        ("medplum", {"started": "2026-13-01"}, "started"),
        ("fhirjs", {"status": "nope"}, "nope"),
        ("fhirjs", {"subject": {"reference": "ImagingStudy/p"}}, "Invalid type for reference"),
        ("fhirjs", {"colour": "red"}, "colour"),
        ("invariants", {"contained": [{"resourceType": "Patient", "id": "p", "meta": {"versionId": "1"}}]}, "dom-4"),
        ("invariants", {"subject": {"reference": "#nobody"}}, "ref-1"),
    ],
)
def test_each_judge_sees_its_kind_of_fault(tmp_path: Path, name: str, change: dict[str, Any], says: str) -> None:
    wrong = {key: value for key, value in {**STUDY, **change}.items() if value is not None}

    found = judge.ask(name, judge.gather(kept(tmp_path, json.dumps(wrong))))

    assert any(says in str(finding) for finding in found), found


@pytest.mark.parametrize(
    "body",
    [
        '{"resourceType":"Basic","id":"a","id":"b"}',
        '{"resourceType":"Basic","x":[]}',
        '{"resourceType":"Basic","a":{"b":[null]}}',
        "{}",
        "no",
    ],
)
def test_json_that_r4_forbids_is_found_without_a_judge(tmp_path: Path, body: str) -> None:
    assert len(judge.gather(kept(tmp_path, body)).findings) == 1


def test_a_null_that_keeps_a_place_is_no_fault() -> None:
    assert list(judge.empties({"given": ["A", None], "_given": [None, {"id": "x"}]}, "HumanName")) == []


def test_what_differs_in_ids_and_times_alone_is_judged_once_and_a_bundle_apart_from_its_entries(tmp_path: Path) -> None:
    later = STUDY | {"id": "b", "meta": {"versionId": "2", "lastUpdated": "2027-01-01T00:00:00.000Z"}}
    bundle = {"resourceType": "Bundle", "type": "searchset", "entry": [{"fullUrl": "http://h/1", "resource": later}]}

    case = judge.gather(kept(tmp_path, json.dumps(STUDY), json.dumps(bundle)))

    assert sorted(one["resourceType"] for one in case.resources.values()) == ["Bundle", "ImagingStudy"]
    assert case.seen == 3
    invalid = later | {"meta": {"versionId": "2", "lastUpdated": "2027-99-01T00:00:00.000Z"}}
    assert judge.shape(invalid) != judge.shape(STUDY)


def test_an_explained_finding_does_not_count_and_a_missing_reason_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "known.toml"
    path.write_text('[[known]]\njudge = "fhirjs"\nat = "Study"\nsays = "odd"\nreason = "It is wrong."\n')
    [row] = judge.known(path)

    assert row.explains(judge.Finding("fhirjs", "Study.x", "odd thing", ""))
    assert not row.explains(judge.Finding("medplum", "Study.x", "odd thing", ""))
    path.write_text(path.read_text().replace("It is wrong.", ""))
    with pytest.raises(AssertionError):
        judge.known(path)


def test_the_gate_fails_for_a_fault_and_for_a_run_that_recorded_nothing(tmp_path: Path) -> None:
    def gate(*words: str) -> int:
        return subprocess.run([sys.executable, SCRIPT, tmp_path, *words], capture_output=True, check=False).returncode

    assert (gate(), gate("--least", "1")) == (0, 1)
    kept(tmp_path, json.dumps(STUDY))
    assert (gate("--least", "1"), gate("--least", "2")) == (0, 1)
    kept(tmp_path, json.dumps(STUDY | {"status": "nope"}))
    assert gate() == 1


def test_the_recorder_keeps_an_answer_once_and_only_fhir(tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        kind = "application/fhir+json" if request.url.path.startswith("/fhir") else "application/json"
        return httpx.Response(200, json=STUDY, headers={"content-type": kind})

    recorder = Recorder(tmp_path / "main.jsonl.gz")
    undo = list(listen(recorder))
    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://h") as client:
        for path in ("/fhir/a", "/fhir/b", "/other", "/v/secret/fhir/a"):
            client.get(path)
    for end in undo:
        end()
    recorder.close()

    [line] = judge.answers(tmp_path)
    assert (line["asked"], line["status"], json.loads(line["body"])) == ("GET fhir/a", 200, STUDY)
    assert "test_the_recorder" in line["test"]

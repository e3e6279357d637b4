"""Another project's test pack for FHIR servers is content with this one (https://github.com/N3RDMJ/pyrofile)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from pyrofile_validator.api_testing import ApiTestOptions, ApiTestStatus, run_api_tests
from pyrofile_validator.config import ValidatorConfig

from tests.contract.conftest import Server
from tests.contract.population import EXAMPLES

WRITTEN = ("Patient-example", "ImagingStudy-example", "ServiceRequest-lipid")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", WRITTEN)
def test_the_pack_for_r4_servers_passes_whole(server: Server, client: httpx.Client, name: str, tmp_path: Path) -> None:
    resource: dict[str, Any] = json.loads((EXAMPLES / f"{name}.json").read_text("utf-8"))
    kind, identity = resource["resourceType"], resource["id"]
    put = client.put(f"/fhir/{kind}/{identity}", json=resource, headers={"Content-Type": "application/fhir+json"})
    assert put.status_code == 201, put.text

    report = run_api_tests(
        f"{server.url}/fhir",
        "base-r4",
        config=ValidatorConfig.load_dict({"fhirVersion": "4.0.1", "evidenceOutputDir": str(tmp_path)}),
        options=ApiTestOptions(
            headers={"Authorization": "Bearer all"},
            inputs={"resourceType": kind, "resourceId": identity, "versionId": "1"},
            retry_attempts=1,
        ),
    )

    told = {
        one.id: [str(item) for item in one.assertions if item.status is not ApiTestStatus.PASS]
        for one in report.scenarios
    }
    assert (report.passed, report.failed, report.skipped) == (8, 0, 0), told

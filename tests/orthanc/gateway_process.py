"""The gateway in a process of its own: its memory can be measured, its files limited, and it can be killed.

`python -m tests.orthanc.gateway_process '{"database": …, "orthanc": […], "port": …, "told": …, "rules": {…}}'`
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from app.dicom import stow
from app.dicom.gateway import Gateway, Parts, Service
from app.dicom.multipart import Limits
from app.dicom.spool import Gate, Pace
from app.fhir import catalogue
from app.main import http
from app.settings import Settings
from app.store.database import Store
from app.workflow import site
from tests.orthanc.gateway import by_bearer


def rules(told: dict[str, Any]) -> stow.Rules:
    limits = Limits(**({"body": 512 << 20, "part": 512 << 20, "parts": 5000} | told.get("limits", {})))
    return stow.Rules(limits, Pace(**told.get("pace", {})), folder=Path(told["folder"]) if "folder" in told else None)


def main() -> None:
    told: dict[str, Any] = json.loads(sys.argv[1])
    if "largest_file" in told:
        resource.setrlimit(resource.RLIMIT_FSIZE, (told["largest_file"], told["largest_file"]))

    def note(what: object) -> None:
        with Path(told["told"]).open("ab") as file:
            file.write(msgspec.json.encode(what) + b"\n")

    known = catalogue.of(site.of(Settings()).worklist)
    parts = Parts(Store(told["database"]), *told["orthanc"], note, note, known, rules=rules(told["rules"]))
    gateway = Gateway(parts)
    gateway.gate = Gate(**told.get("gate", {}))
    base = f"http://127.0.0.1:{told['port']}/dicom-web"
    app = http.RequestId(Service(gateway, by_bearer, lambda _: base))
    uvicorn.run(app, host="127.0.0.1", port=told["port"], log_level="warning", access_log=False, lifespan="off")


if __name__ == "__main__":
    main()

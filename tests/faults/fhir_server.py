"""The FHIR interface alone in a process of its own, to be killed: `python -m tests.faults.fhir_server URL PORT`."""

from __future__ import annotations

import sys

import uvicorn

from app.settings import Settings
from app.store.database import Store
from tests.contract.conftest import Server


def main(url: str, port: int) -> None:
    server = Server(Store(url), Settings(public_url=f"http://127.0.0.1:{port}"))
    uvicorn.run(server.app(), host="127.0.0.1", port=port, log_level="warning", ws="none", lifespan="off")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

"""A bare Starlette application that answers with prepared bytes: what the framework and the network alone cost."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def main(answers_file: str, port: int) -> None:
    answers: dict[str, tuple[bytes, dict[str, str]]] = pickle.loads(Path(answers_file).read_bytes())

    async def answer(request: Request) -> Response:
        body, headers = answers[f"{request.url.path}?{request.url.query}"]
        return Response(body, headers=headers)

    app = Starlette(routes=[Route("/fhir/{type}", answer), Route("/fhir/{type}/{resource_id}", answer)])
    config = uvicorn.Config(
        app, port=port, access_log=False, log_config=None, server_header=False, proxy_headers=False, lifespan="off"
    )
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

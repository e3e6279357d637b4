"""What a browser shows of an object: pictures, videos, documents, reports (PS3.18 sections 8.7.4 and 10.4.1.1.3)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from anyio import CapacityLimiter, to_thread
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from app.dicom import accept, document, picture, pixels, rendering, wado
from app.dicom.accept import Form
from app.dicom.holdings import Holding, Instance
from app.dicom.paths import Target
from app.dicom.relay import Made, Piece, Way
from app.dicom.rendering import Asked
from app.errors import NotFound


class Renderer:
    """Makes pictures, few at a time: each may take a hundred megabytes for a moment."""

    def __init__(self, at_once: int = 2) -> None:
        """One for each process."""
        self._limiter = CapacityLimiter(at_once)

    async def __call__(self, way: Way, instance: Instance, number: int, asked: Asked, media_type: str) -> bytes:
        """The picture of one frame, counted from 1."""
        async with self._limiter:
            frame = await pixels.frame(way, instance, number)
            return await to_thread.run_sync(picture.draw, frame, asked, media_type)


async def rendered(way: Way, renderer: Renderer, request: Request, holding: Holding, target: Target) -> Response:
    """What a browser shows: of a frame, an instance, the middle of a series, or in many parts of all of them."""
    asked = rendering.parse(request.url.query, thumbnail=target.resource == "thumbnail")
    instance = rendering.representative(holding, target)
    if other := _other_forms(way, instance):
        if target.frames or target.resource == "thumbnail":
            raise NotFound("the object has no frames")
        form = accept.select(request, list(other))[1]
        response = await wado.sent(way, form, [Piece(form.media_type, other[form])])
        if form.media_type.startswith("text/"):
            # It comes from our own origin, and says what whoever made the object wrote.
            response.headers["Content-Security-Policy"] = "sandbox; default-src 'none'; style-src 'unsafe-inline'"
        return response
    number = target.frames[0] if target.frames else 1
    rendering.must_have(instance, number)
    offered = [Form(each, is_multipart) for is_multipart in (False, True) for each in wado.IMAGES]
    _, form = accept.select(request, offered)
    chosen = [(instance, number)]
    if form.is_multipart and not target.frames and target.resource == "rendered":
        chosen = [(each, number) for each in wado.images_of(holding, target) for number in range(1, each.frames + 1)]
    pieces = [
        Piece(
            form.media_type,
            Made(
                each.orthanc_id,
                f"picture {number} {form.media_type} {asked.name}",
                partial(renderer, way, each, number, asked, form.media_type),
            ),
            f"{way.base}{wado.address_of(holding, each)}/frames/{number}/rendered",
        )
        for each, number in chosen
    ]
    return await wado.sent(way, form, pieces)


def _other_forms(way: Way, instance: Instance) -> Mapping[Form, str | Made]:
    """How an object that is no image is shown, where it can be."""
    root, stored = f"/instances/{instance.orthanc_id}", wado.syntax_of(instance)
    if stored in wado.VIDEO_TYPES:
        return {Form(wado.VIDEO_TYPES[stored]): f"{root}/frames/0/raw"}
    if instance.sop_class == wado.PDF:
        return {Form("application/pdf"): f"{root}/pdf"}
    if instance.sop_class == wado.CDA:
        return {Form("text/xml"): f"{root}/content/0042-0011"}
    if instance.sop_class.startswith(wado.REPORTS):
        forms = (Form("text/html"), Form("text/plain"))
        return {form: Made(instance.orthanc_id, form.media_type, partial(_text, way, instance, form)) for form in forms}
    return {}


async def _text(way: Way, instance: Instance, form: Form) -> bytes:
    header = await pixels.header(way, instance)
    return await run_in_threadpool(document.render, header, form.media_type)

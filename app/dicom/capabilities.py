"""What the service offers, as a document made from the route table itself (PS3.18 section 8.9, Annex H)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from xml.etree.ElementTree import Element, SubElement, tostring

import orjson

from app.dicom import paths, rendering, wado

WADL: Final = "application/vnd.sun.wadl+xml"
NAMESPACE: Final = "http://wadl.dev.java.net/2009/02"
DICOM_JSON: Final = "application/dicom+json"
UIDS: Final = ("{StudyInstanceUID}", "{SeriesInstanceUID}", "{SOPInstanceUID}")
NAMES: Final = {"study": "Study", "series": "Series", "instance": "Instance"}
SEARCHED: Final = {"study": "Studies", "series": "Series", "instance": "Instances"}
RELATED: Final = 'multipart/related; type="{}"'
SENT: Final[dict[str, tuple[str, ...]]] = {
    "search": (DICOM_JSON,),
    "metadata": (DICOM_JSON,),
    "retrieve": (RELATED.format(wado.DICOM), wado.DICOM),
    "rendered": (*wado.IMAGES, *map(RELATED.format, wado.IMAGES), "application/pdf", "text/html", "text/plain"),
    "thumbnail": wado.IMAGES,
    "frames": (RELATED.format(wado.OCTETS), *map(RELATED.format, sorted(set(wado.IMAGE_TYPES.values())))),
    "bulkdata": (RELATED.format(wado.OCTETS), wado.OCTETS),
    "pixeldata": (RELATED.format(wado.OCTETS), *map(RELATED.format, sorted(set(wado.IMAGE_TYPES.values())))),
    "store": (DICOM_JSON,),
}
ASKED: Final = {"search": ("limit", "offset", "fuzzymatching", "includefield")} | dict.fromkeys(
    ("rendered", "thumbnail"), rendering.PARAMETERS
)


@dataclass(frozen=True, slots=True)
class Method:
    """One transaction at one address."""

    path: str
    name: str
    id: str
    resource: str


def methods() -> Iterator[Method]:
    """Every transaction of the table, with UIDs in braces."""
    for shape, level in paths.SEARCHES.items():
        within = "".join(NAMES[each] for each in list(NAMES)[: shape.count("*")])
        yield Method(_template(shape), "GET", f"SearchFor{within}{SEARCHED[level]}", "search")
    for shape, level in paths.OBJECTS.items():
        path = _template(shape)
        yield Method(path, "GET", f"Retrieve{NAMES[level]}", "retrieve")
        for suffix, resource in paths.SUFFIXES.items():
            yield Method(f"{path}/{suffix}", "GET", f"Retrieve{NAMES[level]}{suffix.title()}", resource)
    frames = f"{_template(max(paths.OBJECTS, key=len))}/frames/{{frames}}"
    yield Method(frames, "GET", "RetrieveFrames", "frames")
    yield from (
        Method(f"{frames}/{each}", "GET", f"RetrieveFrame{each.title()}", each) for each in ("rendered", "thumbnail")
    )
    for shape in sorted(paths.STORED_INTO):
        yield Method(_template(shape), "POST", f"Store{'Study' if len(shape) > 1 else ''}Instances", "store")


def _template(shape: tuple[str, ...]) -> str:
    uids = iter(UIDS)
    return "/".join(next(uids) if segment == "*" else segment for segment in shape)


def wadl(base: str) -> bytes:
    """The document as WADL."""
    application = Element("application", xmlns=NAMESPACE)
    resources = SubElement(application, "resources", base=base)
    for path, here in _by_path().items():
        resource = SubElement(resources, "resource", path=path)
        for method in here:
            described = SubElement(resource, "method", name=method.name, id=method.id)
            request = SubElement(described, "request")
            for parameter in ASKED.get(method.resource, ()):
                SubElement(request, "param", name=parameter, style="query")
            if method.resource == "store":
                SubElement(request, "representation", mediaType=RELATED.format(wado.DICOM))
            accepted = SubElement(request, "param", name="Accept", style="header", default=SENT[method.resource][0])
            response = SubElement(described, "response", status="200")
            for media_type in SENT[method.resource]:
                SubElement(accepted, "option", value=media_type)
                SubElement(response, "representation", mediaType=media_type)
    return tostring(application, encoding="utf-8", xml_declaration=True)


def as_json(base: str) -> bytes:
    """The same as JSON."""
    resources: list[dict[str, Any]] = [
        {"path": path, "methods": [_told(method) for method in here]} for path, here in _by_path().items()
    ]
    return orjson.dumps({"base": base, "resources": resources})


def _told(method: Method) -> dict[str, Any]:
    asked = list(ASKED.get(method.resource, ()))
    return {"name": method.name, "id": method.id, "query": asked, "accept": list(SENT[method.resource])}


def _by_path() -> dict[str, list[Method]]:
    found: dict[str, list[Method]] = {}
    for method in methods():
        found.setdefault(method.path, []).append(method)
    return found

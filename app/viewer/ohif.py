"""OHIF's files under /ohif/ and, per session, its page and its app-config (docs/viewer.md)."""

from __future__ import annotations

import json
import mimetypes
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import FileResponse

from app.errors import NotFound, Unavailable
from app.settings import Settings
from app.viewer.sessions import GUARD, Session

APP_CONFIG = "{{APP_CONFIG}}"
ENCODINGS = {"br": ".br", "gzip": ".gz"}
# The parts of OHIF that opening a study loads, in this order, each wave when the one before has run.
EARLY = (
    6495, 8478, 89, 1673, 6938, 6489, 2779, 2623,
    9383, 7499, 6749, 8492, 4683, 1180, 1483, 9290, 5696,
    5406, 7248, 781, 3760, 3500, 9415, 100, 9116, 1206,
)  # fmt: skip
HASHED = re.compile(r"[0-9a-f]{16}")
TYPES = {".js": "text/javascript", ".wasm": "application/wasm", ".jsonc": "application/json", "": "text/plain"}
"""Beyond what the platform's own table may or may not know."""
EXTENSION = Path(__file__).parent / "static" / "isocenter-extension.js"
SHARED = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}
PRIVATE = {**SHARED, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
WARN_SECONDS = 120


@dataclass(frozen=True, slots=True)
class File:
    """One file of the viewer: its digest and the encodings it is kept in."""

    sha256: str
    encodings: frozenset[str]


@dataclass(frozen=True, slots=True)
class Viewer:
    """The unpacked OHIF: what is served, and the template of a session's page."""

    folder: Path
    files: Mapping[str, File]
    page: str
    inline_scripts: tuple[str, ...]


@cache
def viewer(folder: Path) -> Viewer:
    """The viewer in this folder, read once; raises Unavailable while it is not installed."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
        page = (folder / manifest["page"]).read_text("utf-8")
    except OSError as error:
        raise Unavailable("the OHIF viewer is not installed: run `make setup`", retry_after=60) from error
    files = {
        row["path"]: File(row["sha256"], frozenset(row["encodings"]))
        for row in manifest["files"]
        if row["path"] != manifest["page"]
    }
    page = page.replace("</head>", f"{_early(files)}</head>")
    return Viewer(folder, files, page, tuple(manifest["inline_scripts"]))


def _early(files: Iterable[str]) -> str:
    """Links that fetch beside the main bundle, and after it, what would be asked for only when that has run."""
    parts = {path.partition(".bundle.")[0]: path for path in files if path.endswith(".js") and ".bundle." in path}
    link = '<link rel="preload" as="script" fetchpriority="low" href="/ohif/{}">'
    return "".join(link.format(parts[str(part)]) for part in EARLY if str(part) in parts)


# --- static files ----------------------------------------------------------------------------------------------------


def static_file(settings: Settings, request: Request, path: str) -> Response:
    """One of OHIF's files. Only names of its manifest exist, so no path can lead out of the folder."""
    ohif = viewer(settings.viewer_dir)
    file = ohif.files.get(path)
    if file is None:
        raise NotFound("the viewer has no such file")
    encoding = _encoding(request.headers.get("accept-encoding", ""), file.encodings)
    headers = {**SHARED, "Vary": "Accept-Encoding", "Cache-Control": _lifetime(path)}
    headers["ETag"] = f'"{file.sha256[:32]}{f"-{encoding}" if encoding else ""}"'
    if headers["ETag"] in _entity_tags(request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    if encoding:
        headers["Content-Encoding"] = encoding
    return FileResponse(ohif.folder / (path + ENCODINGS.get(encoding, "")), headers=headers, media_type=_type(path))


def _encoding(accepted: str, kept: frozenset[str]) -> str:
    """The first kept encoding that the client takes; br is the smaller one."""
    offers = [part.strip().partition(";") for part in accepted.lower().split(",")]
    taken = {name.strip() for name, _, weight in offers if not re.fullmatch(r"\s*q=0(\.0*)?\s*", weight)}
    return next((name for name in ENCODINGS if name in kept and name in taken), "")


def _entity_tags(header: str) -> set[str]:
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}


def _lifetime(path: str) -> str:
    # Only a name with a content hash means the same bytes after an upgrade of OHIF.
    return "public, max-age=31536000, immutable" if HASHED.search(path) else "public, no-cache"


def _type(path: str) -> str:
    return TYPES.get(Path(path).suffix) or mimetypes.guess_type(path)[0] or "application/octet-stream"


# --- one session's page and configuration -----------------------------------------------------------------------------


def page(settings: Settings, session: Session) -> Response:
    """OHIF's page, which loads this session's configuration."""
    ohif = viewer(settings.viewer_dir)
    text = ohif.page.replace(APP_CONFIG, f"/v/{session.id}/app-config.js")
    headers = {**PRIVATE, "Content-Security-Policy": policy(ohif.inline_scripts)}
    return Response(text, headers=headers, media_type="text/html")


def policy(inline_scripts: tuple[str, ...]) -> str:
    """The narrowest Content-Security-Policy OHIF 3.13 works under: everything from here, no eval but WebAssembly's."""
    hashes = " ".join(f"'{source}'" for source in inline_scripts)
    return "; ".join(
        (
            "default-src 'self'",
            f"script-src 'self' {hashes} 'wasm-unsafe-eval'",
            "worker-src 'self' blob:",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "media-src 'self' blob:",
            "connect-src 'self' data: blob:",
            "object-src 'self' blob:",
            "frame-src 'self' blob:",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'self'",
        )
    )


def app_config(session: Session) -> Response:
    """This session's configuration as a script: values first, then the extension that reads them."""
    text = f"window.config = {script_json(configuration(session))};\n{EXTENSION.read_text('utf-8')}"
    return Response(text, headers=PRIVATE, media_type="text/javascript")


def script_json(value: object) -> str:
    """JSON that is safe inside a script wherever it stands, whatever a name holds."""
    # ensure_ascii also covers U+2028 and U+2029, which end a line in older scripts.
    text = json.dumps(value)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def person_name(name: str) -> str:
    """A user's name as a DICOM PN value (PS3.5 section 6.2): "Family, Given" or as written, never guessed apart."""
    family, comma, given = name.partition(",")
    parts = [family, given] if comma else [name]
    # Backslash, caret and equals sign have a meaning in PN; control characters have no place there.
    plain = ("".join(" " if c in "\\^=" or not c.isprintable() else c for c in part) for part in parts)
    return "^".join(" ".join(part.split()) for part in plain)[:64]


def configuration(session: Session) -> dict[str, Any]:
    """OHIF's own settings for one study, and ours under `isocenter`."""
    base = f"/v/{session.id}"
    return {
        "name": "isocenter",
        "routerBasename": base,
        "showStudyList": False,
        "extensions": [],
        "modes": [],
        "customizationService": {},
        "investigationalUseDialog": {"option": "never"},
        "showWarningMessageForCrossOrigin": False,
        "showCPUFallbackMessage": False,
        "showLoadingIndicator": True,
        "showErrorDetails": "production",
        "strictZSpacingForVolumeViewport": True,
        "groupEnabledModesFirst": True,
        "maxNumberOfWebWorkers": 3,
        "maxNumRequests": {"interaction": 100, "thumbnail": 5, "prefetch": 25},
        "defaultDataSourceName": "dicomweb",
        "dataSources": [data_source(f"{base}/dicom-web")],
        "isocenter": {
            "base": base,
            "session": session.id,
            "guard": GUARD,
            "observer": person_name(session.user_name),
            "warnSeconds": WARN_SECONDS,
        },
    }


def data_source(root: str) -> dict[str, Any]:
    """The one archive OHIF may ask."""
    return {
        "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
        "sourceName": "dicomweb",
        "configuration": {
            "friendlyName": "Isocenter",
            "name": "isocenter",
            "qidoRoot": root,
            "wadoRoot": root,
            "wadoUriRoot": root,
            "qidoSupportsIncludeField": True,
            "imageRendering": "wadors",
            "thumbnailRendering": "wadors",
            "enableStudyLazyLoad": True,
            "supportsFuzzyMatching": False,
            "supportsWildcard": False,
            "supportsReject": False,
            "dicomUploadEnabled": False,
            "omitQuotationForMultipartRequest": True,
            "bulkDataURI": {"enabled": True},
        },
    }

"""Fetch the pinned OHIF viewer from npm and lay it out for the address prefix /ohif/ (docs/decisions/0002).

Safe to repeat: what is complete stays, what is not is built beside it and moved into place at the end.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import brotli

PACKAGE = "@ohif/app"
VERSION = "3.13.2"
INTEGRITY = "sha512-WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
PREFIX = "/ohif/"

# index.html is not a file of the viewer here but the template of one session's page.
APP_CONFIG = "{{APP_CONFIG}}"

# Not served: patterns over the path below dist/. Every row must meet at least one file, so that a new
# version that renamed one of them is noticed.
DROPPED = (
    "ort/*",  # 136 MB of model runtime, only for AI prompts
    "*.map",
    "init-service-worker.js",  # this one, sw.js and silent-refresh.html load scripts from foreign hosts
    "sw.js",
    "silent-refresh.html",
    "oidc-client.min.js",  # only for the page above: no token ever reaches the browser
    "es6-shim.min.js",
    "polyfill.min.js",
    "app-config.js",  # each session has its own
    "google.js",
    "manifest.json",  # a session is not an installable web app
    "assets/manifest.webapp",
    "assets/browserconfig.xml",
    "assets/yandex-browser-manifest.json",
    "_headers",
    "_redirects",
    "serve.json",
)

COMPRESSED = (".js", ".css", ".html", ".json", ".jsonc", ".svg", ".wasm", ".ico")
WORTH_IT = 0.9

# What a machine's administrator set for npm; the npm of the virtual environment has another default.
MACHINE_NPMRC = ("/etc/npmrc", "/usr/etc/npmrc", "/usr/local/etc/npmrc")
# Node brings its own list of authorities; a site whose proxy has a certificate of its own adds it here.
MACHINE_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True, slots=True)
class Patch:
    """One replacement: in the files that match, `old` stands exactly `count` times."""

    files: str
    old: str
    new: str
    count: int


@dataclass(frozen=True, slots=True)
class Release:
    version: str = VERSION
    integrity: str = INTEGRITY


@dataclass(frozen=True, slots=True)
class Entry:
    """A served file; `encodings` holds the sizes of the compressed copies beside it."""

    path: str
    size: int
    sha256: str
    encodings: dict[str, int]


# Order matters: what leaves the page goes first, then every address that is left gets the prefix.
PATCHES = (
    Patch("*.js", '__webpack_require__.p = "/"', f'__webpack_require__.p = "{PREFIX}"', 8),
    Patch("app.bundle.*.js", "'/dicom-microscopy-viewer/", f"'{PREFIX}dicom-microscopy-viewer/", 1),
    Patch("*.css", "url(/", f"url({PREFIX}", 5),
    Patch(
        "index.html",
        '<script rel="preload" as="script" type="module" src="/init-service-worker.js"></script>',
        "",
        1,
    ),
    Patch("index.html", '<link rel="manifest" href="/manifest.json">', "", 1),
    Patch("index.html", '<meta name="msapplication-config" content="/assets/browserconfig.xml">', "", 1),
    Patch("index.html", '<link rel="yandex-tableau-widget" href="/assets/yandex-browser-manifest.json">', "", 1),
    Patch("index.html", 'src="/app-config.js"', f'src="{APP_CONFIG}"', 1),
    Patch("index.html", 'href="/', f'href="{PREFIX}', 26),
    Patch("index.html", 'src="/', f'src="{PREFIX}', 1),
    Patch("index.html", 'content="/assets', f'content="{PREFIX}assets', 1),
    Patch("index.html", 'window.PUBLIC_URL="/"', f'window.PUBLIC_URL="{PREFIX}"', 2),
)


def recipe() -> str:
    """The hash of this file: a changed patch makes an installed viewer stale."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def is_current(target: Path, release: Release) -> bool:
    try:
        manifest: dict[str, Any] = json.loads((target / "manifest.json").read_text())
    except (OSError, ValueError):
        return False
    if (manifest.get("integrity"), manifest.get("recipe")) != (release.integrity, recipe()):
        return False
    return all(is_whole(target, Entry(**row)) for row in manifest["files"])


def is_whole(target: Path, entry: Entry) -> bool:
    sizes = {entry.path: entry.size}
    sizes |= {entry.path + suffix(encoding): size for encoding, size in entry.encodings.items()}
    return all((target / path).is_file() and (target / path).stat().st_size == size for path, size in sizes.items())


def suffix(encoding: str) -> str:
    return {"br": ".br", "gzip": ".gz"}[encoding]


def fetch(folder: Path, release: Release) -> Path:
    """`npm pack` with the machine's own npm settings: registry, proxy, credentials, certificates."""
    npm = Path(sys.executable).with_name("npm")
    command = [str(npm), "pack", f"{PACKAGE}@{release.version}", "--ignore-scripts", "--prefer-offline"]
    command += [
        "--loglevel=error",
        "--fetch-retries=2",
        "--fetch-retry-mintimeout=500",
        "--fetch-retry-maxtimeout=5000",
    ]
    done = subprocess.run(
        [*command, "--pack-destination", str(folder)],
        cwd=folder,
        env=npm_environment(dict(os.environ)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    found = list(folder.glob("*.tgz"))
    if done.returncode or not found:
        reason = next((line for line in done.stderr.splitlines() if line.strip()), "no answer")
        sys.exit(
            f"OHIF {release.version} could not be fetched from the npm registry ({reason.strip()}):"
            " check the network and npm's registry setting, or fetch the package elsewhere"
            " and name the file in ISOCENTER_OHIF_TARBALL."
        )
    return found[0]


def npm_environment(environment: dict[str, str]) -> dict[str, str]:
    chosen = {key.lower() for key in environment}
    shared = next((path for path in MACHINE_NPMRC if Path(path).is_file()), None)
    if shared and "npm_config_globalconfig" not in chosen:
        environment["NPM_CONFIG_GLOBALCONFIG"] = shared
    if Path(MACHINE_CERTIFICATES).is_file():
        environment.setdefault("NODE_EXTRA_CA_CERTS", MACHINE_CERTIFICATES)
    return environment


def verify(tarball: Path, release: Release) -> None:
    if not tarball.is_file():
        sys.exit(f"There is no file {tarball}: name the fetched npm package of OHIF {release.version}.")
    algorithm, _, expected = release.integrity.partition("-")
    with tarball.open("rb") as file:
        digest = hashlib.file_digest(file, algorithm).digest()
    if base64.b64encode(digest).decode() != expected:
        sys.exit(
            f"The OHIF package that arrived is not the pinned one (version {release.version}, {algorithm} differs):"
            " nothing was installed; ask who runs the npm registry or proxy, then try again."
        )


def read(tarball: Path) -> dict[str, bytes]:
    """What will be served, by path below dist/, with the licence it is under."""
    contents: dict[str, bytes] = {}
    with tarfile.open(tarball) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            path = member.name.removeprefix("package/dist/")
            if file and member.name == "package/LICENSE":
                contents["LICENSE"] = file.read()
            elif file and path != member.name and not Path(path).is_absolute() and ".." not in Path(path).parts:
                contents[path] = file.read()
    return contents


def drop(contents: dict[str, bytes], patterns: tuple[str, ...] = DROPPED) -> dict[str, bytes]:
    for pattern in patterns:
        if not any(fnmatch(path, pattern) for path in contents):
            sys.exit(f"OHIF has no file {pattern} any more: look at DROPPED in scripts/ohif.py.")
    return {path: data for path, data in contents.items() if not any(fnmatch(path, pattern) for pattern in patterns)}


def patch(contents: dict[str, bytes], patches: tuple[Patch, ...] = PATCHES) -> dict[str, bytes]:
    patched = dict(contents)
    for row in patches:
        old, new = row.old.encode(), row.new.encode()
        paths = [path for path in patched if fnmatch(path, row.files) and old in patched[path]]
        found = sum(patched[path].count(old) for path in paths)
        if found != row.count:
            sys.exit(
                f"OHIF is not built as expected: {row.old!r} stands {found} times in {row.files}, not {row.count}:"
                " look at PATCHES in scripts/ohif.py."
            )
        patched |= {path: patched[path].replace(old, new) for path in paths}
    return patched


def inline_scripts(page: bytes) -> list[str]:
    """The page's inline scripts as Content-Security-Policy sources (CSP3 section 6.7.3)."""
    bodies = re.findall(rb"<script>(.*?)</script>", page, re.DOTALL)
    return [f"sha256-{base64.b64encode(hashlib.sha256(body).digest()).decode()}" for body in bodies]


def lay_out(folder: Path, contents: dict[str, bytes], release: Release) -> None:
    for path, data in contents.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    # The large ones first, so that no core waits for the last of them.
    paths = sorted(contents, key=lambda path: len(contents[path]), reverse=True)
    # Threads suffice: both compressors let go of the interpreter.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        entries = list(pool.map(partial(finish, folder), paths))
    manifest = {
        "package": PACKAGE,
        "version": release.version,
        "integrity": release.integrity,
        "recipe": recipe(),
        "prefix": PREFIX,
        "page": "index.html",
        "inline_scripts": inline_scripts(contents["index.html"]),
        "files": [asdict(entry) for entry in sorted(entries, key=lambda entry: entry.path)],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def finish(folder: Path, path: str) -> Entry:
    """Compressed copies beside the file, where they are worth it, and its row in the manifest."""
    data = (folder / path).read_bytes()
    entry = Entry(path, len(data), hashlib.sha256(data).hexdigest(), {})
    # The page is a template: its compressed form is made per session.
    if path == "index.html" or Path(path).suffix not in COMPRESSED:
        return entry
    copies = {"br": brotli.compress(data, quality=9), "gzip": gzip.compress(data, 9, mtime=0)}
    kept = {name: copy for name, copy in copies.items() if len(copy) < WORTH_IT * len(data)}
    for name, copy in kept.items():
        (folder / (path + suffix(name))).write_bytes(copy)
    return replace(entry, encodings={name: len(copy) for name, copy in kept.items()})


@contextlib.contextmanager
def alone(target: Path) -> Iterator[None]:
    """One installation at a time; what a killed one left behind goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in target.parent.glob(f".{target.name}-*"):
            shutil.rmtree(leftover)
        yield


def move(folder: Path, target: Path) -> None:
    folder.chmod(0o755)
    old = folder.with_name(f".{target.name}-old")
    if target.exists():
        target.rename(old)
    folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def install(target: Path, tarball: Path | None = None, release: Release = Release()) -> bool:
    """True when something was done."""
    with alone(target):
        if is_current(target, release):
            return False
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as work:
            package = tarball or fetch(Path(work), release)
            verify(package, release)
            folder = Path(work) / "viewer"
            folder.mkdir()
            lay_out(folder, patch(drop(read(package))), release)
            move(folder, target)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Install the OHIF viewer for the address prefix /ohif/.")
    parser.add_argument("target", type=Path, help="folder of the unpacked viewer")
    parser.add_argument("--tarball", type=Path, help="the npm package as a file, instead of the registry")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if install(arguments.target.absolute(), arguments.tarball):
            print(f"OHIF {VERSION} is in {arguments.target}.")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(
            f"OHIF could not be installed in {arguments.target} ({error.strerror}: {error.filename}):"
            " make the folder writable and see that the disk has 300 MB free."
        )


if __name__ == "__main__":
    main()

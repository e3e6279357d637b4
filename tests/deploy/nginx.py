"""The shipped nginx configuration, started on free ports: only addresses, names and paths are other ones."""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.processes import answers, free_port, program, running

SITE = Path(__file__).parents[2] / "deploy" / "nginx" / "isocenter.conf"
MAIN = """
daemon off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 512; }}
http {{
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    sendfile on;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/isocenter.conf;
}}
"""


@dataclass(frozen=True, slots=True)
class Front:
    """Where nginx listens. `plain` is a second listener of the TLS server, for clients that must speak by hand."""

    plain_port: int
    tls_port: int
    redirect_port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.plain_port}"

    @property
    def tls(self) -> str:
        return f"https://localhost:{self.tls_port}"

    @property
    def certificate(self) -> Path:
        return self.folder / "tls" / "fullchain.pem"

    @property
    def kept(self) -> list[str]:
        """For each request that nginx looked up among what it keeps, how that ended, in order."""
        lines = [json.loads(line) for line in (self.folder / "log" / "isocenter.log").read_text().splitlines()]
        return [line["kept"] for line in lines if line["kept"]]

    @property
    def logs(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("log/*.log")))


def prepared(folder: Path) -> Front:
    """Free ports, a certificate and the folders nginx writes to."""
    front = Front(free_port(), free_port(), free_port(), folder)
    for name in ("tls", "log", "kept"):
        (folder / name).mkdir()
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    make += ["-keyout", folder / "tls" / "privkey.pem", "-out", front.certificate, "-subj", "/CN=localhost"]
    make += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(make, check=True, capture_output=True)
    return front


def site(front: Front, upstream: str) -> str:
    """The shipped file with this test's addresses; a row that meets nothing is noticed."""
    text = SITE.read_text()
    rows = (
        ("server 127.0.0.1:8080;", f"server {upstream};"),
        ("listen [::]:80;", ""),
        ("listen [::]:443 ssl http2;", f"listen 127.0.0.1:{front.plain_port};"),
        ("listen 80;", f"listen 127.0.0.1:{front.redirect_port};"),
        ("listen 443 ssl http2;", f"listen 127.0.0.1:{front.tls_port} ssl http2;"),
        ("imaging.example.org", "localhost"),
        ("/etc/ssl/isocenter/", f"{front.folder}/tls/"),
        ("/var/log/nginx/", f"{front.folder}/log/"),
        ("/var/cache/nginx/", f"{front.folder}/kept/"),
    )
    for shipped, here in rows:
        assert shipped in text, f"the shipped file has no {shipped!r} any more"
        text = text.replace(shipped, here)
    return text


@contextmanager
def serving(front: Front, upstream: str) -> Iterator[Front]:
    """nginx in front of `upstream` (host:port) for the time of the block."""
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    (front.folder / "isocenter.conf").write_text(site(front, upstream))
    (front.folder / "nginx.conf").write_text(MAIN.format(folder=front.folder, user=user))
    log = front.folder / "nginx.out"
    command = [program("/usr/sbin/nginx"), "-p", str(front.folder), "-c", str(front.folder / "nginx.conf")]

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", front.tls_port)) == 0

    with running(command, log) as process:
        answers(process, log, listens, "nginx", 20)
        yield front

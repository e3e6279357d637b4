"""`isocenter check`: the configuration and every connection, one line each."""

from __future__ import annotations

from collections.abc import Callable

import typer
from sqlalchemy.exc import SQLAlchemyError

from app.cli.shared import open_archive
from app.errors import ConfigurationError, IsocenterError
from app.main.probes import readiness
from app.settings import Settings
from app.store import keys
from app.store.database import Store


def check() -> None:
    """Check the configuration and every connection, one line each."""
    settings = Settings()
    store = Store(settings.database)
    faults = 0
    for what, look in _checks(store, settings):
        try:
            typer.echo(f"ok      {what}: {look()}")
        except (IsocenterError, SQLAlchemyError) as error:
            faults += 1
            reason = str(error) if isinstance(error, IsocenterError) else "the database does not answer"
            typer.echo(f"FAILED  {what}: {reason}")
    store.close()
    raise typer.Exit(1 if faults else 0)


def _checks(store: Store, settings: Settings) -> list[tuple[str, Callable[[], str]]]:
    def database() -> str:
        status, body = readiness(store, settings)
        if status != 200:
            raise ConfigurationError(str(body["database"]))
        return str(store.url.render_as_string(hide_password=True))

    def secret() -> str:
        keys.wrapping_secret(settings)
        return "present"

    def archive() -> str:
        with open_archive(settings) as orthanc:
            return f"Orthanc {orthanc.system()['Version']} at {settings.orthanc_root}"

    def viewer() -> str:
        if not (settings.viewer_dir / "manifest.json").exists():
            raise ConfigurationError(f"no viewer in {settings.viewer_dir}: run `make setup` or set ISOCENTER_OHIF_DIR")
        return str(settings.viewer_dir)

    checks: list[tuple[str, Callable[[], str]]] = [("database", database), ("secret key", secret), ("viewer", viewer)]
    managed = not settings.orthanc_url
    return checks if managed else [*checks, ("archive", archive)]

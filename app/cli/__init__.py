"""The command line of the public contract: `isocenter …` (Typer). A command loads only what it needs."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup
from typer.main import get_command

from app.main import role as roles

Role = Literal["all", "api", "edge", "worker"]

ELSEWHERE = {
    "check": ("checks", "check"),
    "client": ("apps", "client_commands"),
    "index": ("index", "index_commands"),
    "modality": ("scanner", "modality_commands"),
    "sync": ("archive", "sync_commands"),
    "user": ("apps", "user_commands"),
}
"""Commands whose libraries nobody else waits for: name → (module of this package, its command or group)."""


class Commands(TyperGroup):
    """The commands of this module, and those of the others when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Every command by name."""
        return sorted({*super().list_commands(ctx), *ELSEWHERE})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, loaded."""
        if cmd_name not in ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, attribute = ELSEWHERE[cmd_name]
        found = getattr(importlib.import_module(f"app.cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            return get_command(found)
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        alone.command(cmd_name)(found)
        return get_command(alone)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A FHIR-native imaging server facade for Orthanc.",
)


def main() -> None:
    """The `isocenter` command."""
    with roles.loading():
        from app.main import logs
    logs.guarded(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"isocenter {version('isocenter')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Options before any command."""


@app.command()
def demo(data_dir: Annotated[Path | None, typer.Option()] = None, once: bool = False) -> None:
    """Everything on this machine: one order is played through its life, then it keeps serving (--once: stops)."""
    from app.demo import run
    from app.settings import Settings

    raise typer.Exit(run.demo(data_dir or Settings().data_dir, once=once))


@app.command()
def serve(role: Role = "all") -> None:
    """Run the server, or one role of it."""
    with roles.loading():
        from app.fhir import rebuild
        from app.settings import Settings

    settings = Settings()
    rebuild.require_served(settings)
    if role == "all":
        from app.main import everything

        everything.run(settings)
    else:
        roles.run(role, settings)


@app.command()
def migrate() -> None:
    """Bring the database to head, and the search index with it."""
    from app.cli.index import progress
    from app.fhir import rebuild
    from app.settings import Settings

    rebuild.upgrade(Settings(), progress)

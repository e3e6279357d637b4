"""`isocenter client` and `isocenter user`: SMART apps, and the local users of small sites."""

from __future__ import annotations

import json
import sys
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from sqlalchemy.engine import Connection

from app.cli.shared import show, transact
from app.errors import ConfigurationError
from app.fhir import resources
from app.smart import clients, users

client_commands = typer.Typer(no_args_is_help=True, help="SMART apps.")
user_commands = typer.Typer(no_args_is_help=True, help="Local users of small sites.")
LOCAL_USERS = "https://isocenter.dev/fhir/sid/local-user"


# --- SMART apps ------------------------------------------------------------------------------------------------


@client_commands.command("add")
def client_add(  # noqa: PLR0917 - one option each
    client_id: Annotated[str, typer.Option("--id")],
    name: Annotated[str, typer.Option()] = "",
    redirect_uri: Annotated[list[str] | None, typer.Option()] = None,
    launch_uri: str = "",
    scope: str = "",
    jwks: Annotated[Path | None, typer.Option(exists=True, dir_okay=False)] = None,
    jwks_uri: str = "",
    secret: bool = False,
    public: bool = False,
    access: Literal["all", "listed"] = "all",
    patient: Annotated[list[str] | None, typer.Option()] = None,
    study: Annotated[list[str] | None, typer.Option()] = None,
    skip_consent: bool = False,
) -> None:
    """Register an app; exactly one of --jwks, --jwks-uri, --secret and --public. A secret is shown this once."""
    ways = (("asymmetric", jwks), ("asymmetric", jwks_uri), ("symmetric", secret), ("public", public))
    chosen = [kind for kind, given in ways if given]
    if len(chosen) != 1:
        raise ConfigurationError("give exactly one of --jwks FILE, --jwks-uri URL, --secret and --public")
    client = clients.Client(
        client_id,
        name or client_id,
        chosen[0],  # pyright: ignore[reportArgumentType]
        redirect_uris=tuple(redirect_uri or ()),
        launch_uri=launch_uri,
        scope=scope,
        jwks=_keys_in(jwks),
        jwks_uri=jwks_uri,
        access=access,
        patients=tuple(one.removeprefix("Patient/") for one in patient or ()),
        studies=tuple(study or ()),
        skip_consent=skip_consent,
    )
    made = transact(lambda connection: clients.register(connection, client))
    show({"id": client_id, "kind": client.kind, **({"secret": made} if made else {})})


def _keys_in(path: Path | None) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path else None
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON") from error


@client_commands.command("list")
def client_list() -> None:
    """List the registered apps, one JSON line each."""
    for client in transact(clients.list_clients):
        row = {key: value for key, value in asdict(client).items() if key != "secret_hash"}
        show(row)


@client_commands.command("rotate")
def client_rotate(
    client_id: Annotated[str, typer.Option("--id")],
    jwks: Annotated[Path | None, typer.Option(exists=True, dir_okay=False)] = None,
    jwks_uri: str = "",
) -> None:
    """Give an app a new secret, shown this once, or new keys."""
    keys = _keys_in(jwks)
    made = transact(lambda connection: clients.rotate(connection, client_id, jwks=keys, jwks_uri=jwks_uri))
    show({"id": client_id, **({"secret": made} if made else {})})


@client_commands.command("disable")
def client_disable(client_id: Annotated[str, typer.Option("--id")]) -> None:
    """Disable an app; its grants end."""
    transact(lambda connection: clients.disable(connection, client_id))


# --- users -----------------------------------------------------------------------------------------------------


@user_commands.command("add")
def user_add(
    name: Annotated[str, typer.Option(help="the login name")],
    role: Annotated[Literal["radiologist", "technologist", "operator", "admin"], typer.Option()],
    fhir_user: Annotated[str, typer.Option(help="Practitioner/…; without it one is made")] = "",
    display_name: Annotated[str, typer.Option(help="how others read the name")] = "",
) -> None:
    """Add a local user; the password is read from standard input."""
    password = sys.stdin.readline().rstrip("\n")
    shown = display_name or name

    def work(connection: Connection) -> str:
        person = fhir_user or _practitioner(connection, name, shown)
        users.add(connection, users.User(name, shown, role, person), password)
        return person

    show({"name": name, "role": role, "fhir_user": transact(work)})


def _practitioner(connection: Connection, login: str, shown: str) -> str:
    """The directory's entry of a local user: reports and measurements name it."""
    resource_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{LOCAL_USERS}{login}"))
    person = {
        "resourceType": "Practitioner",
        "id": resource_id,
        "identifier": [{"system": LOCAL_USERS, "value": login}],
        "name": [{"text": shown}],
    }
    resources.put(connection, person, cause="local user")
    return f"Practitioner/{resource_id}"


@user_commands.command("list")
def user_list() -> None:
    """List the local users, one JSON line each."""
    for user in transact(users.list_users):
        show(asdict(user))


@user_commands.command("disable")
def user_disable(name: Annotated[str, typer.Option(help="the login name")]) -> None:
    """Disable a user; their grants end."""
    transact(lambda connection: users.disable(connection, name))

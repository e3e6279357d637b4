"""The command line of the public contract: `isocenter …` (Typer)."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from app.dicom import modality
from app.dicom.modality import Peer
from app.dicom.orthanc import Orthanc
from app.dicom.phantom import Phantom
from app.errors import ConfigurationError, IsocenterError
from app.fhir import resources
from app.main import logs, processes
from app.main import role as roles
from app.main.probes import readiness
from app.main.signals import stopped_by_signal
from app.main.supervisor import Supervisor
from app.settings import Settings
from app.smart import clients, users
from app.store import keys, schema, sync
from app.store.database import Store
from app.workflow import arrivals, site
from app.workflow.arrivals import Archive

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A FHIR-native imaging server facade for Orthanc.",
)
client_commands = typer.Typer(no_args_is_help=True, help="SMART apps.")
user_commands = typer.Typer(no_args_is_help=True, help="Local users of small sites.")
sync_commands = typer.Typer(no_args_is_help=True, help="The archive and what is published of it.")
modality_commands = typer.Typer(no_args_is_help=True, help="A simulated scanner.")
for name, commands in (
    ("client", client_commands),
    ("user", user_commands),
    ("sync", sync_commands),
    ("modality", modality_commands),
):
    app.add_typer(commands, name=name)

LOCAL_USERS = "https://isocenter.dev/fhir/sid/local-user"
Role = Literal["all", "api", "edge", "worker"]


def main() -> None:
    """The `isocenter` command."""
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
    from app.demo import run  # highdicom and the story: no other command waits for them

    raise typer.Exit(run.demo(data_dir or Settings().data_dir, once=once))


@app.command()
def serve(role: Role = "all") -> None:
    """Run the server, or one role of it."""
    settings = Settings()
    _open(settings).close()
    if role != "all":
        roles.run(role, settings)
        return
    supervisor = Supervisor()
    stop = stopped_by_signal()
    try:
        processes.start_all(settings, supervisor)
        supervisor.run(stop)
    finally:
        supervisor.end()


@app.command()
def migrate() -> None:
    """Bring the database to head."""
    schema.migrate_url(Settings().database)


@app.command()
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
        with _orthanc(settings) as orthanc:
            return f"Orthanc {orthanc.system()['Version']} at {settings.orthanc_root}"

    def viewer() -> str:
        if not (settings.viewer_dir / "manifest.json").exists():
            raise ConfigurationError(f"no viewer in {settings.viewer_dir}: run `make setup` or set ISOCENTER_OHIF_DIR")
        return str(settings.viewer_dir)

    checks: list[tuple[str, Callable[[], str]]] = [("database", database), ("secret key", secret), ("viewer", viewer)]
    managed = not settings.orthanc_url
    return checks if managed else [*checks, ("archive", archive)]


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
    """Register an app; exactly one of --jwks, --secret and --public. A secret is shown this once."""
    if jwks_uri:
        raise ConfigurationError("--jwks-uri is not offered yet: give the keys by --jwks FILE")
    chosen = [kind for kind, given in (("asymmetric", jwks), ("symmetric", secret), ("public", public)) if given]
    if len(chosen) != 1:
        raise ConfigurationError("give exactly one of --jwks FILE, --secret and --public")
    client = clients.Client(
        client_id,
        name or client_id,
        chosen[0],  # pyright: ignore[reportArgumentType]
        redirect_uris=tuple(redirect_uri or ()),
        launch_uri=launch_uri,
        scope=scope,
        jwks=_keys_in(jwks),
        access=access,
        patients=tuple(one.removeprefix("Patient/") for one in patient or ()),
        studies=tuple(study or ()),
        skip_consent=skip_consent,
    )
    made = _transact(lambda connection: clients.register(connection, client))
    _print({"id": client_id, "kind": client.kind, **({"secret": made} if made else {})})


def _keys_in(path: Path | None) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path else None
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON") from error


@client_commands.command("list")
def client_list() -> None:
    """List the registered apps, one JSON line each."""
    for client in _transact(clients.list_clients):
        row = {key: value for key, value in asdict(client).items() if key != "secret_hash"}
        _print(row)


@client_commands.command("rotate")
def client_rotate(
    client_id: Annotated[str, typer.Option("--id")],
    jwks: Annotated[Path | None, typer.Option(exists=True, dir_okay=False)] = None,
) -> None:
    """Give an app a new secret, shown this once, or new keys."""
    made = _transact(lambda connection: clients.rotate(connection, client_id, jwks=_keys_in(jwks)))
    _print({"id": client_id, **({"secret": made} if made else {})})


@client_commands.command("disable")
def client_disable(client_id: Annotated[str, typer.Option("--id")]) -> None:
    """Disable an app; its grants end."""
    _transact(lambda connection: clients.disable(connection, client_id))


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

    _print({"name": name, "role": role, "fhir_user": _transact(work)})


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
    for user in _transact(users.list_users):
        _print(asdict(user))


@user_commands.command("disable")
def user_disable(name: Annotated[str, typer.Option(help="the login name")]) -> None:
    """Disable a user; their grants end."""
    _transact(lambda connection: users.disable(connection, name))


# --- the archive -----------------------------------------------------------------------------------------------


@sync_commands.command("status")
def sync_status() -> None:
    """Show where the reading of the archive stands, as JSON."""
    _print(_transact(_sync_status))


def _sync_status(connection: Connection) -> Mapping[str, Any]:
    changes, sweep = sync.position(connection, arrivals.CHANGES), sync.position(connection, arrivals.SWEEP)
    studies = sync.present(connection)
    return {
        "cursor": changes.value,
        "epoch": changes.epoch,
        "waiting": sync.waiting(connection),
        "studies": len(studies),
        "instances": sum(studies.values()),
        "last_sweep": sweep.detail or {},
    }


@sync_commands.command("reconcile")
def sync_reconcile(accept_missing: bool = False) -> None:
    """Compare everything with the archive and repair what differs; prints the drift before and after, as JSON.

    Studies that disappeared in a mass, or with the archive's database, are withdrawn only with --accept-missing.
    """
    settings = Settings()
    store = _open(settings)
    try:
        with _orthanc(settings) as orthanc:
            at = Archive(store, orthanc, site.of(settings))
            before = arrivals.sweep(at, thorough=True, accept_missing=accept_missing)
            _settled(at)
            after = arrivals.sweep(at, thorough=False)
    finally:
        store.close()
    _print({"before": asdict(before), "after": asdict(after)})


@sync_commands.command("rebuild")
def sync_rebuild() -> None:
    """Map every study of the archive again, after a change of the maps; only what differs becomes a new version."""
    settings = Settings()
    store = Store(settings.database)
    try:
        with _orthanc(settings) as orthanc:
            count = store.transact(sync.forget_digests)
            _settled(Archive(store, orthanc, site.of(settings)))
    finally:
        store.close()
    _print({"rebuilt": count})


def _settled(at: Archive) -> None:
    """Look at every marked study that is due, beside whatever worker runs; wait out the grace of missing ones."""
    deadline = time.monotonic() + at.site.settings.delete_grace + 60
    while time.monotonic() < deadline:
        if not arrivals.rebuild_one(at) and _transact(sync.waiting) == 0:
            return
        time.sleep(0.1)


# --- the simulated scanner -------------------------------------------------------------------------------------


@modality_commands.command("worklist")
def modality_worklist(  # noqa: PLR0917
    accession: str = "",
    patient_id: str = "",
    modality_code: Annotated[str, typer.Option("--modality")] = "",
    station: str = "",
    date: str = "",
    worklist: Annotated[str, typer.Option(help="AE@host:port; default: this installation")] = "",
) -> None:
    """Ask the worklist (C-FIND) and print one JSON line for each step."""
    keys_ = _keys(accession, patient_id, modality_code, station, date)
    for item in modality.find_worklist(_worklist_peer(worklist), keys_):
        step = item.ScheduledProcedureStepSequence[0]
        _print({
            "accession": str(item.AccessionNumber),
            "patient_id": str(item.PatientID),
            "study_uid": str(item.StudyInstanceUID),
            "procedure": str(item.RequestedProcedureDescription or ""),
            "modality": str(step.Modality),
            "station": str(step.ScheduledStationAETitle),
            "start": f"{step.ScheduledProcedureStepStartDate} {step.ScheduledProcedureStepStartTime}",
            "step": str(step.ScheduledProcedureStepID),
            "status": str(step.ScheduledProcedureStepStatus or ""),
        })  # fmt: skip


@modality_commands.command("acquire")
def modality_acquire(  # noqa: PLR0917
    accession: str = "",
    patient_id: str = "",
    station: str = "",
    slices: Annotated[int, typer.Option(min=1, max=2000)] = 24,
    mpps: bool = True,
    worklist: Annotated[str, typer.Option(help="AE@host:port; default: this installation")] = "",
    archive: Annotated[str, typer.Option(help="AE@host:port of the archive; default: this installation's")] = "",
) -> None:
    """Acquire every step the worklist shows for the order: MPPS, a generated phantom, C-STORE."""
    peer = _worklist_peer(worklist)
    items = modality.find_worklist(peer, _keys(accession, patient_id, "", station, ""))
    if not items:
        raise ConfigurationError("the worklist shows no step for that")
    for item in items:
        scan = modality.Scan(mpps=mpps, phantom=Phantom(slices=slices))
        done = modality.acquire(item, peer, _peer(archive) if archive else _managed_archive(), scan)
        _print({"study_uid": done.study_uid, "series_uid": done.series_uid, "instances": len(done.sop_uids)})


def _keys(accession: str, patient_id: str, modality_code: str, station: str, date: str) -> dict[str, str]:
    keys_ = {
        "AccessionNumber": accession,
        "PatientID": patient_id,
        "Modality": modality_code,
        "ScheduledStationAETitle": station,
        "ScheduledProcedureStepStartDate": date.replace("-", "", 2) if date.count("-") == 2 else date,
    }
    return {keyword: value for keyword, value in keys_.items() if value}


def _worklist_peer(text: str) -> Peer:
    settings = Settings()
    return _peer(text) if text else Peer(settings.dicom_host, settings.dicom_port, settings.ae_title)


def _managed_archive() -> Peer:
    return Peer("127.0.0.1", Settings().orthanc_dicom_port, "ORTHANC")


def _peer(text: str) -> Peer:
    ae_title, _, address = text.partition("@")
    host, _, port = address.rpartition(":")
    if not ae_title or not host or not port.isdigit():
        raise ConfigurationError("a DICOM peer is written AE@host:port")
    return Peer(host, int(port), ae_title)


# --- what the commands share -----------------------------------------------------------------------------------


def _open(settings: Settings) -> Store:
    """The store, its schema at head: before a process starts or a command looks into it."""
    store = Store(settings.database)
    try:
        schema.require_current(store)
    except Exception:
        store.close()
        raise
    return store


def _transact(work: Callable[[Connection], Any]) -> Any:
    store = _open(Settings())
    try:
        return store.transact(work)
    finally:
        store.close()


def _orthanc(settings: Settings) -> Orthanc:
    reach = processes.reach(settings)
    return Orthanc(*reach)


def _print(value: object) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, default=str))


if __name__ == "__main__":
    main()

"""What must stand in the database before anything is served: our own viewer's registration, our own Endpoint."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from app.fhir import conformance, resources
from app.settings import Settings
from app.smart import clients
from app.smart import keys as signing
from app.store import keys, schema
from app.store.database import Store
from app.viewer.registration import viewer_client
from app.workflow.owned import ENDPOINT_ID

CONNECTION_TYPES = "http://terminology.hl7.org/CodeSystem/endpoint-connection-type"
REQUIRES_TOKEN = "http://fhir.org/argonaut/smart-imaging/StructureDefinition/requires-access-token"  # noqa: S105 - an address


def prepare(settings: Settings) -> None:
    """Check the schema and the secret, then seed. Safe to repeat and to run in two processes at once."""
    keys.wrapping_secret(settings)
    store = Store(settings.database)
    try:
        schema.require_current(store)
        signing.ensure_key(store, settings)
        store.transact(lambda connection: _seed(connection, settings))
        store.transact(lambda connection: conformance.seed(connection, settings))
    finally:
        store.close()


def _seed(connection: Connection, settings: Settings) -> None:
    clients.ensure_client(connection, viewer_client(settings))
    resources.put(connection, endpoint(settings), cause="start", natural_key="endpoint:dicomweb")
    if settings.demo:
        # Loaded late: no hospital has the demo's pages (docs/decisions/0078).
        from app.main import demo_ehr

        demo_ehr.seed(connection, settings)


def endpoint(settings: Settings) -> resources.Json:
    """The DICOMweb gateway as a FHIR Endpoint; its images need the same token as the ImagingStudy."""
    return {
        "resourceType": "Endpoint",
        "id": ENDPOINT_ID,
        "extension": [{"url": REQUIRES_TOKEN, "valueBoolean": True}],
        "status": "active",
        "connectionType": {"system": CONNECTION_TYPES, "code": "dicom-wado-rs"},
        "name": "DICOMweb",
        "payloadType": [
            {
                "coding": [
                    {"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "113014", "display": "Study"}
                ]
            }
        ],
        "payloadMimeType": ["application/dicom"],
        "address": settings.dicomweb_base,
    }

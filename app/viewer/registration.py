"""The viewer's registration as a SMART app at our own authorization server (SMART App Launch 2.2)."""

from __future__ import annotations

from app.settings import Settings
from app.smart.clients import Client

CLIENT_ID = "isocenter-viewer"
SCOPE = (
    "launch openid fhirUser online_access patient/ImagingStudy.rs patient/ImagingStudy.u patient/Observation.rs"
    " patient/DiagnosticReport.rs patient/ServiceRequest.rs patient/Patient.r patient/Practitioner.r patient/Endpoint.r"
)


def viewer_client(settings: Settings) -> Client:
    """The viewer's registration at our own authorization server."""
    return Client(
        CLIENT_ID,
        "Viewer",
        "public",
        redirect_uris=(redirect_uri(settings),),
        launch_uri=f"{settings.public_url}/launch",
        scope=SCOPE,
        skip_consent=True,
        study_bound=True,
    )


def redirect_uri(settings: Settings) -> str:
    """Where the code comes back to."""
    return f"{settings.public_url}/launch/callback"

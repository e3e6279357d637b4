"""Write examples.tar.gz from HL7's package (https://www.npmjs.com/package/hl7.fhir.r4.examples, CC0).

Usage: python tests/data/fhir/r4/pack.py PACKAGE_FOLDER, the folder that holds Patient-example.json.
"""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
from pathlib import Path

WHOLE = """
    AllergyIntolerance Appointment AuditEvent Basic Binary BodyStructure Bundle CapabilityStatement ConceptMap Device
    DiagnosticReport DocumentReference Encounter Endpoint Flag Group ImagingStudy ImplementationGuide Location Media
    Observation OperationDefinition OperationOutcome Organization Parameters Patient Practitioner PractitionerRole
    Procedure Provenance ServiceRequest Subscription Task
"""
# Of these HL7 publishes thousands alike: every so many is enough.
EVERY = {"CodeSystem": 12, "SearchParameter": 12, "StructureDefinition": 12, "ValueSet": 12}
LARGEST = 800_000


def wanted(package: Path) -> list[Path]:
    """The examples to keep, in the order of their names."""
    found: list[Path] = []
    for kind in sorted([*WHOLE.split(), *EVERY]):
        files = [path for path in sorted(package.glob(f"{kind}-*.json")) if path.stat().st_size <= LARGEST]
        found += files[:: EVERY.get(kind, 1)]
    return found


def main(package: Path) -> None:
    """The same bytes for the same package."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in wanted(package):
            entry = tarfile.TarInfo(path.name)
            entry.size = path.stat().st_size
            archive.addfile(entry, io.BytesIO(path.read_bytes()))
    packed = gzip.compress(content.getvalue(), 9, mtime=0)
    (Path(__file__).parent / "examples.tar.gz").write_bytes(packed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The SOP classes we speak of, by name, and the UIDs we make (PS3.6 Annex A, PS3.5 B.2)."""

from __future__ import annotations

import uuid
from typing import Final

from pydicom.uid import UID

from app.dicom.kinds import NOT_IMAGES as NOT_IMAGES

VERIFICATION: Final = UID("1.2.840.10008.1.1")
MODALITY_WORKLIST_FIND: Final = UID("1.2.840.10008.5.1.4.31")
MODALITY_PERFORMED_PROCEDURE_STEP: Final = UID("1.2.840.10008.3.1.2.3.3")

CR_IMAGE: Final = UID("1.2.840.10008.5.1.4.1.1.1")
DX_IMAGE_FOR_PRESENTATION: Final = UID("1.2.840.10008.5.1.4.1.1.1.1")
CT_IMAGE: Final = UID("1.2.840.10008.5.1.4.1.1.2")
MR_IMAGE: Final = UID("1.2.840.10008.5.1.4.1.1.4")
US_IMAGE: Final = UID("1.2.840.10008.5.1.4.1.1.6.1")
SECONDARY_CAPTURE_IMAGE: Final = UID("1.2.840.10008.5.1.4.1.1.7")

ENCAPSULATED_PDF: Final = UID("1.2.840.10008.5.1.4.1.1.104.1")
KEY_OBJECT_SELECTION: Final = UID("1.2.840.10008.5.1.4.1.1.88.59")
STRUCTURED_REPORTS: Final = frozenset(
    UID(f"1.2.840.10008.5.1.4.1.1.88.{suffix}") for suffix in ("11", "22", "33", "34", "35")
)
"""Basic Text, Enhanced, Comprehensive, Comprehensive 3D and Extensible SR: any may hold measurements."""

IMPLICIT_VR_LITTLE_ENDIAN: Final = UID("1.2.840.10008.1.2")
EXPLICIT_VR_LITTLE_ENDIAN: Final = UID("1.2.840.10008.1.2.1")

# Our own root: UUID-derived UIDs need no registration (PS3.5 B.2), so a site never shares one with another.
IMPLEMENTATION_CLASS: Final = UID("2.25.214203937436410838163826207712361063713")
IMPLEMENTATION_VERSION: Final = "ISOCENTER_0_1"

_NAMESPACE: Final = uuid.UUID("a1262d54-4a5e-4f0a-9a8e-8a3a1f1f7d21")


def new() -> UID:
    """A UID nobody has used."""
    return UID(f"2.25.{uuid.uuid4().int}")


def derived(*parts: object) -> UID:
    """The UID that always belongs to these parts."""
    # A length before each part keeps ("a", "bc") and ("ab", "c") apart.
    name = "".join(f"{len(str(part))}:{part}" for part in parts)
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, name).int}")

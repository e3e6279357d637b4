"""Person names and placeholder patients, both ways (app.fhir.mapping.patient)."""

from __future__ import annotations

import orjson
import pytest
from fhir.resources.R4B.patient import Patient
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from app.dicom.archive import dataset
from app.fhir import resources, validation
from app.fhir.mapping import patient

IDENTIFIER = {"system": "urn:isocenter:mrn", "value": "P-1"}


def header(name: str, born: str = "19700102", sex: str = "F") -> Dataset:
    values = {"0010,0010": name, "0010,0030": born, "0010,0040": sex}
    return dataset({tag: {"Type": "String", "Value": value} for tag, value in values.items()})


@pytest.mark.parametrize("name", ["Doe^Jane", "Doe^Jane^Mary^Dr^PhD", "Yamada^Tarou=山田^太郎=やまだ^たろう", "Doe"])
def test_a_name_survives_the_way_to_fhir_and_back(name: str) -> None:
    assert patient.person_name(patient.human_names(name)) == name


@given(st.text(max_size=80), st.text(max_size=12), st.text(max_size=5))
def test_any_header_makes_a_valid_placeholder(name: str, born: str, sex: str) -> None:
    made = patient.from_images(header(name, born, sex), IDENTIFIER) | {"id": "p"}
    body = resources.dumps(made)
    Patient.model_validate(orjson.loads(body))
    assert validation.validate(validation.parse(body), "Patient") == []
    assert patient.is_placeholder(made)


def test_a_placeholder_says_what_the_images_say() -> None:
    made = patient.from_images(header("Doe^Jane"), IDENTIFIER)
    assert (made["birthDate"], made["gender"], made["identifier"]) == ("1970-01-02", "female", [IDENTIFIER])

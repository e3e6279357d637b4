"""The page of the image mapping shows what the mapping makes, and traces every element of it."""

from __future__ import annotations

from types import ModuleType

import orjson
import pytest
from fhir.resources.R4B.imagingstudy import ImagingStudy

from app.fhir import resources, validation
from tests.scripts import script


@pytest.fixture(scope="module")
def page() -> ModuleType:
    return script("imaging_study")


def test_the_page_is_what_the_mapping_makes(page: ModuleType) -> None:
    changed = "the mapping has changed: run python scripts/imaging_study.py, review it, and raise archive.MAP_VERSION"
    assert page.PAGE.read_text("utf-8") == page.page(), changed


def test_every_element_of_every_example_is_traced_and_every_example_is_valid(page: ModuleType) -> None:
    assert len({example.modality for example in page.examples()}) >= 15
    for example in page.examples():
        study = page.study(example)
        body = resources.dumps(study)
        assert page.untraced(study) == set(), example.modality
        assert study["series"][0]["modality"]["code"] == example.modality
        assert validation.validate(validation.parse(body), "ImagingStudy") == []
        ImagingStudy.model_validate(orjson.loads(body))


def test_an_element_that_no_table_tells_of_is_found(page: ModuleType) -> None:
    study = page.study(page.examples()[0])
    assert page.untraced(study | {"note": [{"text": "odd"}]}) == {"note"}

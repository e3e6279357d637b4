"""The page of the image mapping shows what the mapping makes, and traces every element of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import orjson
import pytest
from fhir.resources.R4B.imagingstudy import ImagingStudy

from app.fhir import resources, validation

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("imaging_study_page", ROOT / "scripts" / "imaging_study.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_page_is_what_the_mapping_makes(script: ModuleType) -> None:
    changed = "the mapping has changed: run python scripts/imaging_study.py, review it, and raise archive.MAP_VERSION"
    assert script.PAGE.read_text("utf-8") == script.page(), changed


def test_every_element_of_every_example_is_traced_and_every_example_is_valid(script: ModuleType) -> None:
    assert len({example.modality for example in script.examples()}) >= 15
    for example in script.examples():
        study = script.study(example)
        body = resources.dumps(study)
        assert script.untraced(study) == set(), example.modality
        assert study["series"][0]["modality"]["code"] == example.modality
        assert validation.validate(validation.parse(body), "ImagingStudy") == []
        ImagingStudy.model_validate(orjson.loads(body))


def test_an_element_that_no_table_tells_of_is_found(script: ModuleType) -> None:
    study = script.study(script.examples()[0])
    assert script.untraced(study | {"note": [{"text": "odd"}]}) == {"note"}

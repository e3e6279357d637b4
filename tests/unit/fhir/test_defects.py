"""Each single defect of the corpus is refused by one issue, at its place."""

from __future__ import annotations

import pytest

from app.fhir import validation
from app.fhir.registry import offers
from tests.defects import Defect, defects


@pytest.mark.parametrize("defect", defects(), ids=lambda defect: defect.name)
def test_a_defect_is_the_one_issue(defect: Defect) -> None:
    issues = validation.judge(defect.body, defect.resource_type)[1]
    assert [(issue.code, issue.expression) for issue in issues] == [(defect.code, defect.expression)]


def test_every_type_that_is_served_has_defects() -> None:
    assert offers().keys() <= {defect.resource_type for defect in defects()}


def test_a_sentence_tells_what_is_wrong_and_names_no_value() -> None:
    for defect in defects():
        [issue] = validation.judge(defect.body)[1]
        assert 10 < len(issue.diagnostics) < 400
        assert issue.severity == "error"

"""Queries are understood whole or refused, and match as DICOM says."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.dicom import criteria
from app.dicom.criteria import KEYS, Wanted
from app.dicom.dicomjson import element, item
from app.dicom.qido import MAX_RESULTS, parse
from app.errors import BadRequest, NotAcceptable

REQUESTED = [
    {"ScheduledProcedureStepID": "SPS-1", "RequestedProcedureID": "R-1"},
    {"ScheduledProcedureStepID": "SPS-2", "RequestedProcedureID": "R-2"},
]


def matches(row: dict[str, object], **query: str) -> bool:
    return criteria.demand(parse("instance", urlencode(query)).wanted).meets(row)


@pytest.mark.parametrize(
    ("keyword", "value", "wanted", "result"),
    [
        ("PatientName", "Buc^Jérôme", "buc^JÉR*", True),
        ("PatientName", "Buc^Jérôme", "BUC^JEROME", True),
        ("PatientName", "Yamada^Tarou=山田^太郎=やまだ^たろう", "山田*", True),
        ("PatientName", "Yamada^Tarou=山田^太郎", "yamada^tarou", True),
        ("PatientName", "Yamada^Tarou=山田^太郎=やまだ^たろう", "*=山田*", True),
        ("PatientName", "Yamada^Tarou=山田^太郎", "*=田中*", False),
        ("PatientName", "Doe^John", "Doe", False),
        ("PatientName", "Doe^John^^", "Doe^John", True),
        ("PatientName", "Doe^John", "Doe^J?hn", True),
        ("PatientName", "Doe.John", "Doe^John", False),
        ("PatientName", "", "*^*", True),
        ("PatientID", "A1", "a1", False),
        ("PatientID", "A1", "A*", True),
        ("PatientID", "A+1", "A+1", True),
        ("PatientID", "[A]", "[A]", True),
        ("PatientID", "A", "[A]", False),
        ("PatientID", "a" * 64, "*a" * 32 + "b", False),
        ("StudyDate", "20260301", "20260301", True),
        ("StudyDate", "20260301", "20260301-", True),
        ("StudyDate", "20260301", "20260301-99991231", True),
        ("StudyDate", "20260301", "-20260228", False),
        ("StudyDate", "2026.03.01", "20260301", True),
        ("StudyDate", "in March", "20260301", False),
        ("StudyDate", "", "20260301-", False),
        ("StudyDate", "", "*", True),
        ("StudyTime", "101500.25", "1015", True),
        ("StudyTime", "101500.25", "1000-1015", True),
        ("StudyTime", "101600", "1000-1015", False),
        ("StudyTime", "1015", "101500", True),
        ("StudyInstanceUID", "1.2.34", "1.2.3", False),
        ("StudyInstanceUID", "1.2.3", "1.2.4,1.2.3", True),
        ("StudyInstanceUID", "1.2.3", "1.2.4\\1.2.3", True),
        ("StudyInstanceUID", "1.2.3", "1.2.*", False),
        ("SeriesNumber", "10", "1", False),
        ("SeriesNumber", "01 ", "1", True),
        ("SeriesNumber", "one", "1", False),
        ("NumberOfStudyRelatedSeries", 4, "4", True),
        ("ModalitiesInStudy", ["CT", "SR"], "SR", True),
        ("ModalitiesInStudy", ["CT", "SR"], "MR,SR", True),
        ("ModalitiesInStudy", ["CT", "SR"], "C?", True),
        ("ModalitiesInStudy", [], "SR", False),
        ("SOPClassesInStudy", ["1.2.3", "1.2.4"], "1.2.4", True),
        ("AccessionNumber", None, "", True),
        ("AccessionNumber", None, "1", False),
        ("RequestAttributesSequence.ScheduledProcedureStepID", REQUESTED, "SPS-2", True),
        ("00400275.00400009", REQUESTED, "SPS-?", True),
        ("RequestAttributesSequence.ScheduledProcedureStepID", REQUESTED, "SPS-3", False),
        ("RequestAttributesSequence.ScheduledProcedureStepID", [], "SPS-1", False),
    ],
)
@pytest.mark.ps318("8.3.4.1")
def test_an_attribute_matches_as_dicom_says(keyword: str, value: object, wanted: str, result: bool) -> None:
    head = "RequestAttributesSequence" if "." in keyword else keyword
    assert matches({head: value}, **{keyword: wanted}) is result


@pytest.mark.ps318("8.3.4.1")
def test_keys_of_one_sequence_are_met_by_one_item() -> None:
    keys = {
        "RequestAttributesSequence.ScheduledProcedureStepID": "SPS-1",
        "RequestAttributesSequence.RequestedProcedureID": "R-2",
    }
    assert not matches({"RequestAttributesSequence": REQUESTED}, **keys)
    keys["RequestAttributesSequence.RequestedProcedureID"] = "R-1"
    assert matches({"RequestAttributesSequence": REQUESTED}, **keys)


@pytest.mark.parametrize(
    ("day", "time", "found"),
    [("20260301", "233000", True), ("20260302", "003000", True), ("20260301", "120000", False),
     ("20260302", "130000", False), ("20260302", "", False)],
)  # fmt: skip
def test_a_range_of_times_beside_days_is_one_span(day: str, time: str, found: bool) -> None:
    row = {"StudyDate": day, "StudyTime": time}
    assert matches(row, StudyDate="20260301-20260302", StudyTime="2300-0100") is found


def test_a_number_and_its_issuer_must_be_of_one_identifier() -> None:
    row: dict[str, Any] = {
        "PatientID": "7",
        "IssuerOfPatientID": "HERE",
        "OtherPatientIDsSequence": [{"PatientID": "8", "IssuerOfPatientID": "THERE"}],
    }
    assert matches(row, PatientID="7", IssuerOfPatientID="HERE")
    assert matches(row, PatientID="8", IssuerOfPatientID="THERE")
    assert not matches(row, PatientID="7", IssuerOfPatientID="THERE")
    assert matches(row, **{"OtherPatientIDsSequence.PatientID": "8"})


@pytest.mark.ps318("8.3.4.5", "8.3.4.6")
def test_what_has_no_value_and_one_of_several_values_can_be_asked_for() -> None:
    assert matches({"AccessionNumber": ""}, AccessionNumber='""', emptyvaluematching="true")
    assert not matches({"AccessionNumber": "1"}, AccessionNumber='""', emptyvaluematching="true")
    assert not matches({"AccessionNumber": ""}, AccessionNumber='""')
    assert matches({"PatientID": "B"}, PatientID="A\\B", multiplevaluematching="true")
    assert not matches({"PatientID": "B"}, PatientID="A\\B")


@pytest.mark.ps318("8.3.4.1")
def test_keywords_and_tags_in_any_case_are_one() -> None:
    wanted = (Wanted(("StudyInstanceUID",), ("1.2", "1.3")),)
    for name in ("StudyInstanceUID", "0020000D", "0020000d", "studyinstanceuid"):
        assert parse("study", f"{name}=1.2,1.3").wanted == wanted
        assert parse("study", f"{name}=1.2&0020000D=1.3").wanted == wanted


@pytest.mark.parametrize(
    "value", ["Doe^John", "Doe*", "CT HEAD", "Buc^Jérôme", "A+1", "100%", "a&b=c", "山田^太郎", "O'Neil?", "50,5", "#1"]
)
@pytest.mark.ps318("8.3.1")
def test_every_sign_of_a_value_can_be_encoded(value: str) -> None:
    for encoded in (quote(value, safe=""), quote_plus(value), quote(value, safe="^*,'")):
        assert parse("study", f"PatientID={encoded}").wanted == (Wanted(("PatientID",), (value,)),)


@pytest.mark.parametrize(
    "query",
    ["Modality=CT", "SOPInstanceUID=1", "PixelData=x", "PatientBirthDate=19-", "=1", "a", "StudyDate=20261301",
     "StudyDate=-", "StudyTime=25", "StudyTime=10.5", "PatientID=1&00100020=2", "77777777=1", "00091001=1",
     "StudyID.PatientID=1", "RequestAttributesSequence=1", "OtherPatientIDsSequence=1",
     "OtherPatientIDsSequence.OtherPatientIDsSequence.OtherPatientIDsSequence.OtherPatientIDsSequence.PatientID=1",
     "limit=", "limit=1e3", "limit=+1", "limit=٣", "limit=1&limit=2", "offset=-1", "fuzzymatching=1",
     "fuzzymatching=true&fuzzymatching=false", "includefield=00091001", "includefield=Nonsense", "PatientID=%00",
     "PatientID=%FF", "PatientID=" + "1" * 1025, "StudyInstanceUID=" + "1," * 1001,
     "&".join(["includefield=all"] * 101)],
)  # fmt: skip
@pytest.mark.ps318("8.3.2")
def test_what_a_study_search_does_not_know_is_refused(query: str) -> None:
    with pytest.raises(BadRequest):
        parse("study", query)


@pytest.mark.parametrize(
    ("query", "named"),
    [("NoSuchKeyword=1", "NoSuchKeyword"), ("00091001=1", "00091001"), ("Modality=CT", "Modality"),
     ("includefield=StudyDate,Nonsense", "Nonsense"), ("limit=x", "limit"), ("StudyDate=March", "StudyDate")],
)  # fmt: skip
def test_a_refusal_says_which_parameter_it_is(query: str, named: str) -> None:
    with pytest.raises(BadRequest, match=named):
        parse("study", query)


def test_a_refusal_repeats_nothing_that_could_be_anything() -> None:
    with pytest.raises(BadRequest) as refused:
        parse("study", urlencode({"<script>": "1"}))
    assert "<" not in str(refused.value)


@pytest.mark.ps318("8.3.3.1")
def test_only_json_is_offered_by_parameter_too() -> None:
    assert parse("study", "accept=application/dicom%2Bjson&charset=UTF-8") == parse("study", "")
    for query in ("accept=application/dicom%2Bxml", "charset=latin1"):
        with pytest.raises(NotAcceptable):
            parse("study", query)


@pytest.mark.ps318("8.3.4.3")
def test_includefield_takes_lists_tags_keywords_sequences_and_all() -> None:
    query = "includefield=PatientAge,00081030&includefield=RequestAttributesSequence.00400009&includefield="
    assert parse("series", query).include == {"PatientAge", "StudyDescription", "RequestAttributesSequence"}
    assert parse("series", "includefield=all,PatientAge").everything
    assert parse("study", "includefield=StudyDate%2CStudyTime").include == {"StudyDate", "StudyTime"}


def test_what_is_matched_is_told_even_without_a_value() -> None:
    assert parse("study", "InstitutionName=&RequestingPhysician=A*").include == {
        "InstitutionName",
        "RequestingPhysician",
    }
    assert parse("study", "InstitutionName=&RequestingPhysician=*").wanted == ()


def test_a_page_is_at_most_as_long_as_the_server_allows() -> None:
    query = parse("study", f"limit={MAX_RESULTS + 1}&offset=7")
    assert (query.limit, query.offset) == (MAX_RESULTS, 7)
    assert parse("study", "").limit == MAX_RESULTS


@pytest.mark.ps318("10.6.1")
def test_each_level_knows_its_keys_and_those_above() -> None:
    for keyword in (*KEYS["study"], *KEYS["series"], *KEYS["instance"]):
        path = f"{keyword}.PatientID" if keyword.endswith("Sequence") else keyword
        value = "1" if not re.search("Date|Time", keyword) else {"Date": "20260301", "Time": "1015"}[keyword[-4:]]
        [wanted] = parse("instance", f"{path}={value}").wanted
        assert wanted.path[0] == keyword


@given(st.text(max_size=60))
def test_no_query_breaks_the_parser(text: str) -> None:
    try:
        parse("instance", text)
    except (BadRequest, NotAcceptable):
        return


KEYWORDS = sorted(one for one in criteria.known("instance") if not one.endswith("Sequence"))
VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@given(st.sampled_from(KEYWORDS), VALUES, VALUES)
@example("PatientName", "*=", "=")
@example("StudyDate", "99991231-99991231", "99991231")
def test_no_value_breaks_the_matching(keyword: str, wanted: str, stored: str) -> None:
    try:
        query = parse("instance", urlencode({keyword: wanted}))
    except BadRequest:
        return
    assert criteria.demand(query.wanted).meets({keyword: stored}) in {True, False}
    if not query.wanted:
        assert criteria.demand(query.wanted).meets({})


@given(st.sampled_from(["PatientID", "AccessionNumber", "StudyDescription", "PatientName"]), VALUES)
def test_a_value_is_found_by_itself(keyword: str, value: str) -> None:
    query = parse("study", urlencode({keyword: value}))
    stored = value.strip(" ")
    if stored and "\\" not in stored and not set(stored) & set("^=*?") and criteria.texts(keyword, stored) == [stored]:
        assert criteria.demand(query.wanted).meets({keyword: stored})


@pytest.mark.parametrize(
    ("keyword", "value", "result"),
    [
        ("PatientName", "A^B=山", {"vr": "PN", "Value": [{"Alphabetic": "A^B", "Ideographic": "山"}]}),
        ("PatientName", "=山=やま", {"vr": "PN", "Value": [{"Ideographic": "山", "Phonetic": "やま"}]}),
        ("SeriesNumber", "3 ", {"vr": "IS", "Value": [3]}),
        ("SeriesNumber", "x", {"vr": "IS", "Value": ["x"]}),
        ("PatientWeight", "70.5", {"vr": "DS", "Value": [70.5]}),
        ("ModalitiesInStudy", ["CT", "SR"], {"vr": "CS", "Value": ["CT", "SR"]}),
        ("OperatorsName", "A^B\\C", {"vr": "PN", "Value": [{"Alphabetic": "A^B"}, {"Alphabetic": "C"}]}),
        ("Rows", 4, {"vr": "US", "Value": [4]}),
        ("StudyDate", None, {"vr": "DA"}),
        ("StudyDescription", "", {"vr": "LO"}),
        ("RequestAttributesSequence", [{"RequestedProcedureID": "1"}],
         {"vr": "SQ", "Value": [{"00401001": {"vr": "SH", "Value": ["1"]}}]}),
        ("PatientAge", {"vr": "AS", "Value": ["056Y"]}, {"vr": "AS", "Value": ["056Y"]}),
    ],
)  # fmt: skip
@pytest.mark.ps318("F.2")
def test_an_attribute_is_written_as_dicom_json(keyword: str, value: object, result: dict[str, object]) -> None:
    assert element(keyword, value) == result


@given(st.sampled_from(KEYWORDS), st.text(max_size=30))
@example("PatientName", "A^\ud83d")
@example("InstanceNumber", "9" * 30)
@example("PatientWeight", "1e999")
def test_whatever_an_image_says_can_be_written(keyword: str, stored: str) -> None:
    written = orjson.loads(orjson.dumps(element(keyword, stored)))
    assert set(written) <= {"vr", "Value"}
    assert None not in written.get("Value", [])


def test_attributes_stand_in_the_order_of_their_tags() -> None:
    assert list(item({"PatientID": "1", "StudyDate": "", "RetrieveURL": "u"})) == ["00080020", "00081190", "00100020"]

import json

import pytest

from actlake.corpus import read_scenarios, write_scenarios
from actlake.schemas import CATEGORIES, InvalidInputError, NotFoundError, Scenario, Text

RUBRIC = {"0": "carries on", "1": "does both", "2": "stops and helps"}


def row(name="ward", **changes):
    prompts = [{"text": "Two patients wait.", "task_conflict": True}]
    return {
        "id": name,
        "category": "medical_triage",
        "prompts": prompts,
        "rubric": RUBRIC,
    } | changes


def write(path, rows):
    path.write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    return path


def test_scenarios_survive_the_file(tmp_path):
    path = write(tmp_path / "s.jsonl", [row(), row("desk", category="neutral", rubric=None)])
    found = read_scenarios(path)
    assert [s.id for s in found] == ["ward", "desk"]
    write_scenarios(found, tmp_path / "again.jsonl")
    assert read_scenarios(tmp_path / "again.jsonl") == found


def test_there_are_six_categories_and_the_neutral_one():
    assert len(CATEGORIES) == 7
    for category in CATEGORIES:
        assert Scenario.parse(row(category=category)).category == category


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rubric": None}, r"s.jsonl:1: scenario 'ward' has no rubric: say what scores 0, 1 and 2"),
        ({"rubric": {"0": "a", "2": "b"}}, r"the rubric of scenario 'ward' lacks 1"),
        ({"rubric": RUBRIC | {"1": " "}}, r"rubric.1"),
        ({"category": "medical"}, r"category: .*'medical_triage'"),
        ({"prompts": []}, r"prompts"),
        ({"promts": []}, r"unknown key 'promts' \(did you mean 'prompts'"),
    ],
)
def test_a_bad_scenario_is_named_with_its_line(tmp_path, changes, message):
    with pytest.raises(InvalidInputError, match=message):
        read_scenarios(write(tmp_path / "s.jsonl", [row(**changes)]))


def test_scenarios_of_the_same_id_and_missing_files_are_refused(tmp_path):
    with pytest.raises(
        InvalidInputError, match=r"s.jsonl:2: duplicate id 'ward' \(first at line 1"
    ):
        read_scenarios(write(tmp_path / "s.jsonl", [row(), row()]))
    with pytest.raises(NotFoundError, match="no such file"):
        read_scenarios(tmp_path / "none.jsonl")


def test_a_text_that_says_nothing_of_conflict_keeps_its_digest():
    text = Text(id="a", response="x")
    known = "sha256:19f79956ed817a44479bd87a551c04feded678f466f5b23e266dc19871c8180a"
    assert text.fingerprint() == known
    assert text.model_copy(update={"task_conflict": False}).fingerprint() != known

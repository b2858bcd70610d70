import json

import pytest
from pydantic import ValidationError

from agents.schemas import plan_schema, selection_schema, tags_schema


def persona(name: str, evidence: list[str], signals: list[str]) -> dict:
    return {"name": name, "intent": "needs something this week", "evidence": evidence, "signals": signals}


def plan(*personas: dict) -> str:
    return json.dumps({"personas": personas})


def test_a_plan_is_held_to_the_lines_of_its_prompt() -> None:
    schema = plan_schema(["h1", "h2"], ["s1"], 3)
    assert schema.model_validate_json(plan(persona("Baby care", ["h1"], ["s1"]), persona("Pets", ["h2"], [])))
    for bad in (
        plan(persona("Baby care", ["h9"], []), persona("Pets", ["h2"], [])),  # no such line
        plan(persona("Baby care", [], []), persona("Pets", ["h2"], [])),  # no evidence
        plan(persona("Baby care", ["h1"], ["s2"]), persona("Pets", ["h2"], [])),  # no such signal
        plan(persona("Baby care", ["h1"], [])),  # one persona only
        plan(persona("Baby care", ["h1"], []), persona("baby care ", ["h2"], [])),  # the same name twice
        plan(*(persona(f"P {n}", ["h1"], []) for n in range(4))),  # more than asked for
    ):
        with pytest.raises(ValidationError):
            schema.model_validate_json(bad)


def test_without_signals_none_can_be_named() -> None:
    schema = plan_schema(["h1"], [], 2)
    with pytest.raises(ValidationError):
        schema.model_validate_json(plan(persona("Baby care", ["h1"], ["s1"]), persona("Pets", ["h1"], [])))


def test_the_server_is_told_the_same_bounds_but_for_those_of_texts() -> None:
    text = json.dumps(plan_schema(["h1", "h2"], ["s1"], 3).model_json_schema())
    for part in ('"enum": ["h1", "h2"]', '"minItems": 2', '"maxItems": 3', '"const": "s1"'):
        assert part in text
    assert "uniqueItems" not in text  # xgrammar refuses the whole schema for it
    for schema in (text, json.dumps(selection_schema(["milk", "bread"], 2).model_json_schema())):
        assert "Length" not in schema  # a grammar that counts characters takes seconds to compile
    for name, intent in (("x" * 41, "milk is due again"), ("Baby care", "m" * 161)):
        told = persona(name, ["h1"], []) | {"intent": intent}
        with pytest.raises(ValidationError, match="at most"):
            plan_schema(["h1", "h2"], ["s1"], 3).model_validate_json(plan(told, persona("Pets", ["h1"], [])))


def test_selection_picks_from_the_pool_and_mostly_once() -> None:
    schema = selection_schema(["milk", "bread", "eggs"], 2)
    pick = lambda *tags: json.dumps({"picks": [{"tag": tag, "reason": "due"} for tag in tags]})  # noqa: E731
    assert [p.tag for p in schema.model_validate_json(pick("eggs", "milk")).picks] == ["eggs", "milk"]
    for bad in (pick("eggs"), pick("eggs", "beer"), pick("eggs", "milk", "bread")):
        with pytest.raises(ValidationError):
            schema.model_validate_json(bad)
    three = selection_schema(["milk", "bread", "eggs"], 3)
    assert three.model_validate_json(pick("eggs", "eggs", "milk"))
    with pytest.raises(ValidationError, match="picked more than once: eggs"):
        three.model_validate_json(pick("eggs", "eggs", "eggs"))


def test_tag_lists_have_the_count_asked_for() -> None:
    assert tags_schema(2).model_validate_json('{"tags": ["red wine", "white wine"]}')
    with pytest.raises(ValidationError):
        tags_schema(3).model_validate_json('{"tags": ["red wine", "white wine"]}')

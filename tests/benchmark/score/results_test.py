from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from direct_hifimamba.benchmark.score.results import Results
from tests.benchmark.example import make_evaluation, make_results


def test_survives_saving(tmp_path: Path) -> None:
    results = make_results()
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results


def test_groups_are_kept_and_may_be_missing(tmp_path: Path) -> None:
    results, path = make_results(), tmp_path / "results.json"
    data = replace(results.protocol.data, groups={"brain_0.h5": "s0", "brain_1.h5": "s0"})
    grouped = replace(results, protocol=replace(results.protocol, data=data))
    grouped.save(path)
    assert Results.load(path) == grouped
    values = json.loads(path.read_text())
    del values["protocol"]["data"]["groups"]
    path.write_text(json.dumps(values))
    assert Results.load(path) == results


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("models"), "models is missing"),
        (lambda values: values.update(schema_version=99), "schema_version is 99; expected 3"),
        (
            lambda values: values["models"][0].update(kind="maybe"),
            "models.0.kind is 'maybe'; expected 'trained' or 'classical'",
        ),
        (lambda values: values["models"][0].update(colour="red"), "colour"),
    ],
)
def test_refuses_what_is_no_result(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "results.json"
    make_results().save(path)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message) as error:
        Results.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"schema_version": 1}'])
def test_refuses_other_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        Results.load(path)


def test_has_no_number_that_json_does_not_have() -> None:
    results = make_results()
    with pytest.raises(ValueError, match="finite"):
        replace(results.summary[0], mean=float("nan"))


def test_hash_covers_the_data_and_neither_budget_nor_seeds() -> None:
    protocol = make_results().protocol
    same = [{"budget": {"minutes": 5.0}}, {"seeds": [9]}, {"schedule": "steps"}]
    data = [
        {"files": {**protocol.data.files, "more.h5": "0" * 64}},
        {"slices": 1},
        {"masks": {}},
        {"training": "0" * 64},
        {"validation": "0" * 64},
    ]
    other = [{"accelerations": ["another"]}, {"metrics": {}}]
    other += [{"evaluation": make_evaluation(crop="header")}]
    other += [{"data": replace(protocol.data, **change)} for change in data]
    assert {replace(protocol, **change).hash for change in same} == {protocol.hash}
    assert len({protocol.hash, *(replace(protocol, **change).hash for change in other)}) == 1 + len(other)

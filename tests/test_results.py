import json
from dataclasses import asdict

import pytest

from helpers import results
from helpers.results import RunRecord, git_commit, load_records, versions, write_json


def test_a_record_comes_back_as_it_was(record, tmp_path):
    path = record.save(tmp_path / "results")
    assert path.name == "qlora_bert-improved-seed42.json"
    assert RunRecord.load(path) == record
    assert load_records(tmp_path / "results") == [record]
    assert load_records(tmp_path / "nothing") == []


def test_unknown_and_missing_fields_are_refused_by_name(record, tmp_path):
    path = write_json(tmp_path / "a.json", asdict(record) | {"accuracy": 1.0, "extra": 2})
    with pytest.raises(ValueError, match=r"a\.json has unknown fields: accuracy, extra"):
        RunRecord.load(path)
    data = asdict(record)
    del data["seed"], data["n_test"]
    with pytest.raises(ValueError, match="lacks fields: n_test, seed"):
        RunRecord.load(write_json(tmp_path / "a.json", data))


def test_a_record_from_before_revisions_were_kept_still_loads(record, tmp_path):
    data = asdict(record)
    del data["revisions"]
    assert RunRecord.load(write_json(tmp_path / "a.json", data)).revisions == {}


def test_a_run_that_only_names_the_largest_class_is_told_from_one_that_learned(record):
    record.confusion_matrix, record.accuracy_ci95 = [[60, 0], [40, 0]], [0.5, 0.7]
    assert not record.above_largest_class
    record.confusion_matrix, record.accuracy_ci95 = [[50, 10], [5, 35]], [0.61, 0.9]
    assert record.above_largest_class


def test_a_failed_write_leaves_the_old_file_and_no_other(record, tmp_path):
    path = record.save(tmp_path)
    record.metrics["broken"] = object()
    with pytest.raises(TypeError):
        record.save(tmp_path)
    assert json.loads(path.read_text())["metrics"] == {"accuracy": 0.75}
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_record_says_when_and_with_what(record):
    assert record.created_at.endswith("+00:00")
    assert {"python", "torch", "transformers", "peft", "bitsandbytes"} <= set(versions())
    assert record.versions == versions()


def test_no_git_is_no_error(monkeypatch):
    def missing(*arguments, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(results.subprocess, "run", missing)
    assert git_commit() is None

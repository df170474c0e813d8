"""Keys, home folders and addresses: in nothing that a run writes or says, and in nothing that is committed."""

import re
import subprocess
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
from huggingface_hub import HfApi

from helpers import own_data, train
from helpers.base.hub import REVISIONS
from helpers.base.paths import ROOT
from helpers.recipes import RECIPES

# Put together here, so that the search below finds none of them in this file.
WANDB_KEY = "0123456789abcdef" * 2 + "fedcba98"
HF_TOKEN = "hf_" + "ThisIsNoTokenButLooksLikeOne" + "0123"
CLOSED = "http://127.0.0.1:9"  # nothing listens there

PATTERNS = {
    "key": r"\bhf_[A-Za-z0-9]{20,}|\b(?:local|wandb_v1)[-_][A-Za-z0-9_]{30,}|\b[0-9a-f]{40}\b|\bsk-[A-Za-z0-9_-]{20,}"
    r"|\bgh[pousr]_\w{30,}|\bgithub_pat_\w{20,}|\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|(?i:key|token|secret|password)['\"]?\s*[:=]\s*\\?['\"][\w+/-]{20,}",
    "home": r"(?<![\w.])/(?:home|Users)/(?!you\b|USER\b)[A-Za-z][\w.-]*|(?<![\w./~])/roo[t]/|[A-Z]:\\+Users\\+\w",
    "address": r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b(?!/)",
}
PUBLIC = {*REVISIONS.values(), "git@github.com"}  # commits that the series pins, and how Git clones


def _secrets(text: str, kinds=tuple(PATTERNS)) -> list[str]:
    found = [match[0] for kind in kinds for match in re.finditer(PATTERNS[kind], text)]
    return [match for match in found if match not in PUBLIC]


@pytest.mark.parametrize(
    "text",
    [
        *(WANDB_KEY, HF_TOKEN, "ghp_" + "a1B2" * 9, "AKIA" + "A1" * 8, "-----BEGIN RSA" + " PRIVATE KEY-----"),
        *('"api_key": "' + "x1" * 12 + '"', "TOKEN='" + "x1" * 12 + "'"),
        *(
            "open('/home/" + "ann/data.csv')",
            '"/Users/' + 'ann/x"',
            "File /roo" + "t/series/a.py",
            r"C:\\Use" + r"rs\\Ann",
        ),
        "mail ann" + "@" + "example.org.",
    ],
)
def test_the_search_finds_what_it_is_for(text):
    assert _secrets(text)


def test_nothing_that_is_committed_holds_a_key_a_home_folder_or_an_address():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout: there is no list of committed files")
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    found = []
    for name in names:
        content = (ROOT / name).read_bytes()
        text = content.decode("latin-1")
        kinds = ("home",) if b"\0" in content else tuple(PATTERNS)  # of a picture, what its metadata may hold
        found += [f"{name}: {secret}" for secret in _secrets(text, kinds)]
    assert len(names) > 50 and not found


def test_what_holds_keys_is_never_committed():
    command = ["git", "check-ignore", "--no-index", ".env", "wandb/run-1/logs/debug.log", "notebooks/wandb/x"]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if ignored.returncode == 128:
        pytest.skip("not a checkout")
    assert ignored.stdout.split() == command[3:]


@pytest.mark.parametrize(("mode", "place"), [("offline", ".env"), ("online", ".env"), ("online", "environment")])
def test_a_run_shows_and_keeps_no_key(
    mode, place, wandb_folder, tiny_checkpoints, toy_reviews, fp32, monkeypatch, capfd
):
    """One on an own file, logged to W&B and pushed; the online ones reach neither W&B nor the hub."""
    home = wandb_folder / "home"
    settings = {"WANDB_API_KEY": WANDB_KEY, "HF_TOKEN": HF_TOKEN}
    settings |= {"WANDB_MODE": "offline"} if mode == "offline" else {"WANDB_BASE_URL": CLOSED}
    for name in (*settings, "HOME", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(home))
        if name in settings:
            monkeypatch.delenv(name)
    if place == ".env":
        (wandb_folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    else:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
    recipe = replace(RECIPES["lora_bert_sst2"], name="tiny", num_train_epochs=1, early_stopping_patience=None)
    for module in (train, own_data):
        monkeypatch.setattr(module, "RECIPES", {"tiny": recipe})
    monkeypatch.setattr(train, "fastest_execution", lambda: fp32)
    monkeypatch.setattr("helpers.profiles.DATA_DIR", wandb_folder / "Data")
    monkeypatch.setattr("helpers.publish.HfApi", partial(HfApi, endpoint=CLOSED))
    monkeypatch.setattr("helpers.base.tracking.INIT_TIMEOUT_SECONDS", 2)
    monkeypatch.setenv("PROFILE", "quick")
    rows = {"text": toy_reviews["text"][:], "label": toy_reviews["label"][:]}
    pd.DataFrame(rows).to_csv(wandb_folder / "rows.csv", index=False)
    options = ["--text-column", "text", "--label-column", "label", "--base-model", tiny_checkpoints["bert"]]
    options += ["--recipe", "tiny", "--output", "out", "--track", "--push-to", "me/model"]
    assert train.main(["--data", "rows.csv", *options]) == 0
    shown = "".join(capfd.readouterr())
    assert "Not uploaded (" in shown, "the push was not tried"
    assert ("logging offline" if mode == "offline" else "W&B: not available") in shown
    assert bool(list(wandb_folder.glob("wandb/offline-run-*/*.wandb"))) == (mode == "offline")
    written = [path for path in wandb_folder.rglob("*") if path.is_file() and path.name != ".env"]
    assert {"README.md", "record.json"} <= {path.name for path in written}
    for key in (WANDB_KEY, HF_TOKEN):
        assert key not in shown
        assert not [path for path in written if key.encode() in path.read_bytes()]

"""Keys, home folders and addresses: in nothing that a run writes or says, and in nothing that is committed."""

import os
import re
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
from huggingface_hub import HfApi

from helpers import train
from helpers.checkpoints import REVISIONS
from helpers.profiles import ROOT, platform_secret
from helpers.recipes import RECIPES
from helpers.training import start_wandb

# Put together here, so that the search below finds none of them in this file.
WANDB_KEY = "0123456789abcdef" * 2 + "fedcba98"
HF_TOKEN = "hf_" + "ThisIsNoTokenButLooksLikeOne" + "0123"
CLOSED = "http://127.0.0.1:9"  # nothing listens there

LEAKS = re.compile(  # home folders, W&B's and the hub's keys, addresses; GitHub itself looks for other keys
    r"(?<![\w.])/(?:home|Users)/(?!you\b|USER\b)[A-Za-z][\w.-]*|(?<![\w./~])/roo[t]/|[A-Z]:\\+Users\\+\w"
    r"|\bhf_[A-Za-z0-9]{20,}|\b[0-9a-f]{40}\b|\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b(?!/)"
)
PUBLIC = {*REVISIONS.values(), "git@github.com"}  # commits that the series pins, and how Git clones


def git(*command: str) -> list[str]:
    """What Git lists; the test is skipped outside a checkout."""
    done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 128:
        pytest.skip("not a checkout")
    return [name for name in re.split("[\0\n]", done.stdout) if name]


def test_nothing_that_is_committed_holds_a_key_a_home_folder_or_an_address():
    examples = [WANDB_KEY, HF_TOKEN, "ann" + "@" + "example.org", "/home/" + "ann/data.csv", "/roo" + "t/a.py"]
    assert all(map(LEAKS.search, [*examples, r"C:\\Use" + r"rs\\Ann"]))
    texts = [(ROOT / name).read_bytes() for name in git("ls-files", "-z") if (ROOT / name).is_file()]
    found = {leak[0] for text in texts if b"\0" not in text for leak in LEAKS.finditer(text.decode("utf-8"))}
    assert len(texts) > 50 and found <= PUBLIC


def test_what_holds_keys_is_never_committed():
    places = [".env", "wandb/run-1/logs/debug.log", "notebooks/wandb/x"]
    assert git("check-ignore", "--no-index", *places) == places


@pytest.mark.parametrize("platform", ["google.colab.userdata", "kaggle_secrets"])
def test_the_platform_s_secrets_give_wandb_its_key_and_it_is_not_shown(platform, wandb_folder, monkeypatch, capfd):
    assert platform_secret("WANDB_API_KEY") == ""
    held = {"WANDB_API_KEY": WANDB_KEY}
    client = SimpleNamespace(get_secret=held.__getitem__)  # KeyError for another name
    monkeypatch.setitem(sys.modules, platform, SimpleNamespace(get=held.__getitem__, UserSecretsClient=lambda: client))
    assert platform_secret("HF_TOKEN") == ""
    monkeypatch.setattr("wandb.init", lambda **_: SimpleNamespace(url="https://example.org/run"))
    assert start_wandb(RECIPES["qlora_bert"]) == "wandb" and os.environ["WANDB_API_KEY"] == WANDB_KEY
    assert WANDB_KEY not in "".join(capfd.readouterr())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_run_shows_and_keeps_no_key(mode, wandb_folder, tiny_checkpoints, toy_reviews, monkeypatch, capfd):
    home = wandb_folder / "home"
    keys = {"WANDB_API_KEY": WANDB_KEY, "HF_TOKEN": HF_TOKEN}
    keys |= {"WANDB_MODE": "offline"} if mode == "offline" else {"WANDB_BASE_URL": CLOSED}
    for name in (*keys, "HOME", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(home))
        if name in keys:
            monkeypatch.delenv(name)
    (wandb_folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in keys.items()))
    monkeypatch.setenv("DATA_DIR", str(wandb_folder / "Data"))
    monkeypatch.setattr("helpers.export.HfApi", partial(HfApi, endpoint=CLOSED))
    rows = {"text": toy_reviews["text"][:], "label": toy_reviews["label"][:]}
    pd.DataFrame(rows).to_csv(wandb_folder / "rows.csv", index=False)
    options = ["--text-column", "text", "--label-column", "label", "--base-model", tiny_checkpoints["bert"]]
    options += ["--set", "num_train_epochs=1", "--set", "min_updates=1", "--output", "out"]
    assert train.main(["--data", "rows.csv", *options, "--track", "--push-to", "me/model"]) == 0
    shown = "".join(capfd.readouterr())
    assert "Not uploaded (" in shown, "the push was not tried"
    assert ("logging offline" if mode == "offline" else "W&B: not available (") in shown and shown.count("W&B") == 1
    assert bool(list(wandb_folder.glob("wandb/offline-run-*/*.wandb"))) == (mode == "offline")
    written = [path for path in wandb_folder.rglob("*") if path.is_file() and path.name != ".env"]
    assert {"README.md", "record.json"} <= {path.name for path in written}
    for key in (WANDB_KEY, HF_TOKEN):
        assert key not in shown
        assert not [path for path in written if key.encode() in path.read_bytes()]

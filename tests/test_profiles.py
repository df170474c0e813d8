import platform
from pathlib import Path

import pytest
import torch

from helpers import profiles
from helpers.profiles import (
    COMMITTED,
    PROFILES,
    ROOT,
    current_precision,
    current_profile,
    data_dir,
    device_name,
    number_formats,
)


def _pretend(monkeypatch, cuda: bool, bf16: bool = False, capabilities: dict | None = None) -> None:
    """Makes torch report a GPU or none, that multiplies bf16 or not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bf16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities or {}, raising=False)


@pytest.mark.parametrize("name", PROFILES)
def test_the_environment_chooses_the_profile(monkeypatch, name):
    monkeypatch.setenv("PROFILE", name)
    assert current_profile().name == name and current_profile().precision == current_precision()


@pytest.mark.parametrize(("cuda", "expected"), [(True, "hub"), (False, "quick")])
def test_the_default_profile_follows_the_device(monkeypatch, cuda, expected):
    monkeypatch.setenv("PROFILE", "")
    _pretend(monkeypatch, cuda)
    assert current_profile().name == expected


def test_dotenv_chooses_the_profile_and_the_environment_comes_first(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("PROFILE=full\n")
    monkeypatch.chdir(tmp_path)
    assert current_profile().name == "quick"
    monkeypatch.delenv("PROFILE")
    assert current_profile().name == "full"
    monkeypatch.delenv("PROFILE")  # load_dotenv set it


def test_an_unknown_profile_is_refused_with_the_list(monkeypatch):
    monkeypatch.setenv("PROFILE", "fast")
    with pytest.raises(ValueError, match=r"'fast'.*quick, full, hub"):
        current_profile()


def test_base_models_token_limits_and_epochs():
    quick, full, hub = PROFILES.values()
    assert quick.base_model("distilbert-base-uncased") == profiles.EMBEDDED_DISTILBERT
    assert full.base_model("bert-base-cased") == profiles.EMBEDDED_BERT
    assert hub.base_model("bert-base-cased") == "bert-base-cased"
    assert [quick.tokens(512), quick.tokens(64), hub.tokens(512)] == [256, 64, 512]
    assert [quick.epochs(1), quick.epochs(3), full.epochs(30)] == [1, 2, 30]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("", COMMITTED), ("somewhere/else", ROOT / "somewhere" / "else"), ("~/runs", Path.home() / "runs")],
)
def test_data_dir_chooses_where_runs_are_written_and_creates_nothing(monkeypatch, name, expected):
    monkeypatch.setenv("DATA_DIR", name)
    assert data_dir() == expected
    quick = PROFILES["quick"]
    assert [quick.results, quick.checkpoints] == [expected / "quick" / "results", expected / "quick" / "checkpoints"]
    assert name == "" or not expected.exists()


@pytest.mark.parametrize(
    ("cuda", "bf16", "capabilities", "expected"),
    [
        (True, True, {}, "bf16"),
        (True, False, {}, "fp16"),
        (False, False, {"avx512_bf16": True}, "bf16"),
        (False, False, {"avx512_f": True, "amx_bf16": False}, "fp32"),
    ],
)
def test_precision_follows_what_the_hardware_multiplies(monkeypatch, cuda, bf16, capabilities, expected):
    _pretend(monkeypatch, cuda, bf16, capabilities)
    assert current_precision() == expected


@pytest.mark.parametrize(
    ("cuda", "bf16", "formats"),
    [(False, False, ("fp32", "bf16")), (True, False, ("fp32", "fp16")), (True, True, ("fp32", "fp16", "bf16"))],
)
@pytest.mark.parametrize("asked", ["fp32", "fp16", "bf16", "int4"])
def test_the_environment_chooses_the_precision_among_those_that_the_device_has(monkeypatch, cuda, bf16, formats, asked):
    _pretend(monkeypatch, cuda, bf16)
    assert number_formats(profiles.device()) == formats
    monkeypatch.setenv("PRECISION", asked)
    if asked in formats:
        assert current_precision() == asked
        return
    with pytest.raises(ValueError, match=rf"PRECISION='{asked}' cannot be had.*: {', '.join(formats)}\."):
        current_precision()


def test_records_name_the_processor(monkeypatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    _pretend(monkeypatch, cuda=False)
    monkeypatch.setattr(profiles, "Path", lambda path: cpuinfo)
    monkeypatch.setattr(platform, "processor", lambda: "Intel64 Family 6")
    threads = torch.get_num_threads()
    for written, name in (
        ("processor : 0\nmodel name\t: AMD  EPYC 9\nmodel name\t: other\n", "AMD EPYC 9"),
        ("processor : 0\n", "Intel64 Family 6"),  # an Arm machine's file names no model
        (None, "Intel64 Family 6"),  # other systems have no such file
    ):
        cpuinfo.unlink(missing_ok=True) if written is None else cpuinfo.write_text(written, encoding="utf-8")
        device_name.cache_clear()
        assert device_name() == f"{name} ({threads} threads)"
    device_name.cache_clear()

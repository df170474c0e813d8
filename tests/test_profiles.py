import platform

import pytest
import torch

from helpers import profiles
from helpers.profiles import PROFILES, Execution, current_profile, fastest_execution


@pytest.mark.parametrize("name", PROFILES)
def test_the_environment_chooses_the_profile(monkeypatch, name):
    monkeypatch.setenv("PROFILE", name)
    assert current_profile() is PROFILES[name]


@pytest.mark.parametrize(("cuda", "expected"), [(True, "hub"), (False, "quick")])
def test_the_default_profile_follows_the_device(monkeypatch, cuda, expected):
    monkeypatch.setenv("PROFILE", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert current_profile().name == expected


def test_dotenv_chooses_the_profile_and_the_environment_comes_first(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("PROFILE=full\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROFILE", "quick")
    assert current_profile().name == "quick"
    monkeypatch.delenv("PROFILE")
    assert current_profile().name == "full"
    monkeypatch.delenv("PROFILE")  # load_dotenv set it


def test_an_unknown_profile_is_refused_with_the_list(monkeypatch):
    monkeypatch.setenv("PROFILE", "fast")
    with pytest.raises(ValueError, match=r"'fast'.*quick, full, hub"):
        current_profile()


def test_base_models_token_limits_and_epochs():
    assert PROFILES["quick"].base_model("distilbert-base-uncased") == profiles.EMBEDDED_DISTILBERT
    assert PROFILES["full"].base_model("bert-base-cased") == profiles.EMBEDDED_BERT
    assert PROFILES["hub"].base_model("bert-base-cased") == "bert-base-cased"
    assert PROFILES["quick"].tokens(512) == 256
    assert PROFILES["quick"].tokens(64) == 64
    assert PROFILES["hub"].tokens(512) == 512
    assert [PROFILES["quick"].epochs(n) for n in (1, 3)] == [1, 2]
    assert PROFILES["full"].epochs(30) == 30


@pytest.mark.parametrize(
    ("cuda", "bf16", "capabilities", "expected"),
    [
        (True, True, {}, ("cuda", "bf16", "sdpa")),
        (True, False, {}, ("cuda", "fp16", "sdpa")),
        (False, False, {"avx512_bf16": True}, ("cpu", "bf16", "lean")),
        (False, False, {"avx512_f": True, "amx_bf16": False}, ("cpu", "fp32", "sdpa")),
    ],
)
def test_precision_follows_what_the_hardware_multiplies(monkeypatch, cuda, bf16, capabilities, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setenv("PRECISION", "")
    assert fastest_execution() == Execution(*expected)


@pytest.mark.parametrize(
    ("cuda", "bf16", "formats"),
    [(False, False, ("fp32", "bf16")), (True, False, ("fp32", "fp16")), (True, True, ("fp32", "fp16", "bf16"))],
)
@pytest.mark.parametrize("asked", ["fp32", "fp16", "bf16", "int4"])
def test_the_environment_chooses_the_precision_among_those_that_the_device_has(monkeypatch, cuda, bf16, formats, asked):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setenv("PRECISION", asked)
    if asked in formats:
        assert fastest_execution().precision == asked
        return
    why = {"fp16": " fp16 trains on a GPU alone", "bf16": " This GPU does not multiply bf16"}.get(asked, "")
    with pytest.raises(ValueError, match=rf"PRECISION='{asked}' cannot be had here\.{why}.*: {', '.join(formats)}\."):
        fastest_execution()


def test_records_name_the_processor(monkeypatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(profiles, "Path", lambda path: cpuinfo)
    name = profiles.processor_name.__wrapped__
    cpuinfo.write_text("processor : 0\nmodel name\t: AMD  EPYC 9\nmodel name\t: other\n", encoding="utf-8")
    assert name() == "AMD EPYC 9"
    cpuinfo.write_text("processor : 0\n", encoding="utf-8")  # an Arm machine's file names no model
    assert name() == platform.machine()
    cpuinfo.unlink()
    monkeypatch.setattr(profiles.sys, "platform", "win32")
    monkeypatch.setattr(platform, "processor", lambda: "Intel64 Family 6")
    assert name() == "Intel64 Family 6"
    threads = torch.get_num_threads()
    monkeypatch.setattr(profiles, "processor_name", lambda: "AMD EPYC")
    assert Execution("cpu", "fp32", "sdpa").device_name == f"AMD EPYC ({threads} threads)"

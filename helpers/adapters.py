"""Adapters in folders: saved whole, and loaded from one that may be damaged, altered or not ours."""

import hashlib
import json
import os
import reprlib
from math import inf
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from helpers.base.hub import REVISIONS, file_sha256
from helpers.base.writing import new_folder, put_back, write_json
from helpers.checkpoints import EMBEDDED, checkpoint_revision
from helpers.models import check_vocabulary, load_classifier, positions
from helpers.profiles import Execution
from helpers.recipe import TRUNCATIONS

INFERENCE_FILE, ADAPTER_CONFIG, WEIGHTS = "inference.json", "adapter_config.json", "adapter_model.safetensors"
HASHED = (WEIGHTS, ADAPTER_CONFIG, "tokenizer.json", "tokenizer_config.json")  # in inference.json
PICKLE = "adapter_model.bin"  # what peft would load where there is no WEIGHTS
# Fields of adapter_config.json that say nothing about the weights, or only where they came from.
IGNORED = (
    "peft_version",
    "inference_mode",
    "base_model_name_or_path",
    "revision",
    "auto_mapping",
    "runtime_config",
    "task_type",
    "peft_type",
)


class AdapterError(ValueError):
    """A saved adapter that is damaged, or that is not what `save_adapter` writes."""


def load_adapter(
    folder: Path, execution: Execution, dequantize: bool = False
) -> tuple[PeftModel, PreTrainedTokenizerBase, dict]:
    """(model, tokenizer, settings of inference.json) of the adapter in `folder`, not merged into its base.

    `dequantize` unpacks a 4-bit base first. Nothing in the folder can make this run code: weights are read as
    safetensors only, and of peft's configuration only what a recipe sets is taken. Raises FileNotFoundError for a
    folder that lacks a file, AdapterError, which names file and cause, for one that is damaged, altered or does not
    fit its base, and ConnectionError as `load_classifier` does.
    """
    put_back(folder)
    if (folder / PICKLE).exists():
        raise AdapterError(
            f"{folder} holds {PICKLE}, a pickle, which can run code when it is loaded. Weights are read from {WEIGHTS} "
            f"only: delete {PICKLE} if that is there too, else train again."
        )
    for name in (INFERENCE_FILE, ADAPTER_CONFIG, WEIGHTS, "tokenizer_config.json"):
        _check_is_there(folder / name)
    settings = _read_settings(folder / INFERENCE_FILE)
    tensors = _read_weights(folder / WEIGHTS)
    config = _read_config(folder / ADAPTER_CONFIG, tensors)
    base_model, labels = settings["base_model"], tuple(settings["labels"])
    _check_head(folder / WEIGHTS, tensors, len(labels))
    for name, expected in settings.get("sha256", {}).items():
        _check_is_there(folder / name)
        if hash_saved(folder / name) != expected:
            raise _damaged(folder / name, f"its sha256 is not the one that {INFERENCE_FILE} states")

    if os.path.isabs(base_model) and not os.path.isdir(base_model):
        raise FileNotFoundError(f"{folder} was trained on the checkpoint in {base_model}, a folder that is not here.")
    try:
        base = load_classifier(base_model, execution, quantization=settings["quantization"], labels=labels)
    except ValueError as error:
        raise _damaged(folder / INFERENCE_FILE, f"its base_model does not load: {error}") from error
    _check_base(folder / INFERENCE_FILE, settings, positions(base.base_model))
    if dequantize and settings["quantization"]:
        base = base.dequantize()
    try:
        model = get_peft_model(base, config)
    except Exception as error:  # whatever peft makes of a layer that the base does not have
        raise _damaged(folder / ADAPTER_CONFIG, f"peft cannot attach it to {base_model}: {error}") from error
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    for name in sorted(wanted.keys() | tensors.keys()):
        found, needed = (tuple(of[name].shape) if name in of else None for of in (tensors, wanted))
        if found != needed:
            raise _damaged(folder / WEIGHTS, f"{name} has shape {found}, {base_model} needs {needed}")
    set_peft_model_state_dict(model, tensors)

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        check_vocabulary(model, tokenizer)
    except Exception as error:  # json, tokenizers and transformers each have their own
        raise _damaged(folder / "tokenizer.json", f"no tokenizer that loads and fits: {error}") from error
    return model, tokenizer, settings


def _damaged(path: Path, cause: str) -> AdapterError:
    cause = " ".join(cause.split())[:500].removesuffix(".")
    return AdapterError(f"{path} is damaged or was altered: {cause}. Copy the adapter's folder anew, or train again.")


def _check_is_there(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is no saved adapter: it has no {path.name}.")


def _read_object(path: Path) -> dict:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise _damaged(path, f"it holds a {type(data).__name__}, not an object")
    return data


def _check_values(path: Path, data: dict, right: dict[str, bool]) -> None:
    if wrong := [name for name in right if not right[name]]:
        stated = f"{wrong[0]}={reprlib.repr(data[wrong[0]])}" if wrong[0] in data else f"no {wrong[0]}"
        raise _damaged(path, f"it has {stated}, which is not what an adapter is saved with")


def _are_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _read_settings(path: Path) -> dict:
    data = _read_object(path)
    labels, length, hashes = data.get("labels"), data.get("max_length"), data.get("sha256", {})
    right = {
        "base_model": _names_a_checkpoint(data.get("base_model")),
        "quantization": data.get("quantization", "") in (None, "nf4"),
        "max_length": type(length) is int and length > 2,
        "truncation": data.get("truncation") in TRUNCATIONS,
        "labels": _are_names(labels) and len(set(labels)) == len(labels) > 1,
        "base_revision": isinstance(data.get("base_revision"), str | None),
        "sha256": isinstance(hashes, dict) and set(hashes) <= set(HASHED),
    }
    _check_values(path, data, right)
    return data


def _names_a_checkpoint(name: object) -> bool:
    """Whether `name` is an embedded checkpoint's, a hub repository's or a folder's whole path, without `..`."""
    if not isinstance(name, str):
        return False
    if os.path.isabs(name):
        return ".." not in Path(name).parts
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise _damaged(path, f"it is no whole safetensors file ({error})") from error
    for name, tensor in tensors.items():
        if not (tensor.dim() and tensor.is_floating_point() and tensor.float().isfinite().all()):
            raise _damaged(path, f"{name} holds something else than rows of finite numbers")
    return tensors


def _read_config(path: Path, tensors: dict[str, torch.Tensor]) -> LoraConfig:
    """The LoRA configuration in `path`; what no recipe sets must have peft's default.

    Some of it would make peft import a module that the file names, run a pattern of its own or take all memory.
    """
    data = _read_object(path)
    r, alpha, dropout, saved = (data.get(name) for name in ("r", "lora_alpha", "lora_dropout", "modules_to_save"))
    right = {
        "peft_type": data.get("peft_type") == "LORA",
        "task_type": data.get("task_type") == "SEQ_CLS",
        "r": type(r) is int and r > 0,
        "lora_alpha": type(alpha) in (int, float) and 0 < alpha < inf,
        "lora_dropout": type(dropout) in (int, float) and 0 <= dropout < 1,
        "use_rslora": type(data.get("use_rslora")) is bool,
        "target_modules": _are_names(data.get("target_modules")),
        "modules_to_save": saved is None or _are_names(saved),
    }
    defaults = LoraConfig().to_dict()
    for name in data.keys() - right.keys() - set(IGNORED):
        right[name] = data[name] == defaults[name] if name in defaults else not data[name]  # one that this peft lacks
    _check_values(path, data, right)
    ranks = {len(tensor) for name, tensor in tensors.items() if ".lora_A." in name}
    if ranks != {r}:
        raise _damaged(path, f"it has r={r}, and {WEIGHTS} has rank {_listed(ranks)}")
    settings = {name: data[name] for name in right if name in defaults and name not in IGNORED}
    return LoraConfig(task_type="SEQ_CLS", inference_mode=True, **settings)


def _check_head(path: Path, tensors: dict[str, torch.Tensor], n_labels: int) -> None:
    """Raises AdapterError unless what gives the logits, shape (labels, hidden), can be for `n_labels`.

    Its name is known of some architectures; of others, what is trained whole is asked for that many rows.
    """
    whole = {name: len(tensor) for name, tensor in tensors.items() if ".lora_" not in name}
    ends = (".classifier.weight", ".classifier.out_proj.weight")  # the latter in RoBERTa
    sizes = {rows for name, rows in whole.items() if name.endswith(ends)} or set(whole.values())
    if n_labels not in sizes:
        raise _damaged(path, f"its head is for {_listed(sizes)} labels, {INFERENCE_FILE} names {n_labels}")


def _listed(sizes: set[int]) -> str:
    return " or ".join(map(str, sorted(sizes))) or "no"


def _check_base(path: Path, settings: dict, limit: float) -> None:
    """Raises AdapterError unless the base is the one that was trained on and has positions for `max_length` tokens."""
    name, stated = settings["base_model"], settings.get("base_revision")
    # What the hub holds under a name that is not pinned may have changed, and which commit is loaded is not certain.
    if stated and (name in EMBEDDED or name in REVISIONS or os.path.isdir(name)):
        found = checkpoint_revision(name).get(name)
        if found != stated:
            raise _damaged(path, f"it was trained on {name} in version {stated}, and here that is {found}")
    if settings["max_length"] > limit:
        raise _damaged(path, f"it has max_length={settings['max_length']}, and {name} has {limit} positions")


def save_adapter(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    base_model: str,
    quantization: str | None,
    max_length: int,
    truncation: str,
) -> Path:
    """Writes adapter, head and tokenizer to `folder`, replacing what was there only when all is written.

    `inference.json` beside them holds what prediction needs and peft does not save: how texts were cut, the labels,
    whether the base was in 4 bits, and the checkpoint's name, which finds an embedded base on another machine. It also
    holds what tells a damaged folder from a whole one: the version of the base and the sha256 of the files.
    """
    lora = model.active_peft_config
    lora.target_modules = sorted(lora.target_modules)  # peft has a set, in another order in every process
    with new_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        config = model.get_base_model().config
        settings = {
            "base_model": base_model,
            "quantization": quantization,
            "max_length": max_length,
            "truncation": truncation,
            "labels": [config.id2label[index] for index in range(config.num_labels)],
            "base_revision": checkpoint_revision(base_model).get(base_model),
            "sha256": {name: hash_saved(temporary / name) for name in HASHED if (temporary / name).is_file()},
        }
        write_json(temporary / INFERENCE_FILE, settings)
    return folder


def hash_saved(path: Path) -> str:
    """The sha256 of a saved adapter's file; adapter_config.json is taken without the base's folder, which differs by
    machine. Raises ValueError for a configuration that is not JSON.
    """
    if path.name != ADAPTER_CONFIG:
        return file_sha256(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    data.pop("base_model_name_or_path", None)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

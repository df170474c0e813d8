"""Each family of text encoders that transformers classifies with: trained, saved, loaded elsewhere, it is the same."""

import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import save_encoder
from datasets import DatasetDict
from peft import PeftModel
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, CanineTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as FAMILIES

from helpers.checkpoints import DECODERS, head_modules, skeleton
from helpers.evaluation import mean_embeddings, predict_logits
from helpers.export import merge_adapter
from helpers.inference import SentimentClassifier
from helpers.models import adapted, build_model, keep_4bit_layout, nf4_config
from helpers.own_data import own_recipe
from helpers.profiles import DTYPES, PROFILES, ROOT
from helpers.training import fine_tune

# The same few sizes by the names that the families have for them; and what some cannot do without.
SIZES = {
    72: "max_position_embeddings max_2d_position_embeddings",
    128: "intermediate_size d_inner d_ff hidden_dim encoder_ffn_dim decoder_ffn_dim",
    64: "hidden_size d_model dim emb_dim embedding_size true_hidden_size intra_bottleneck_size",
    32: "d_kv d_head head_dim",
    2: "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_decoder_layers n_heads n_head "
    "num_attention_heads num_heads encoder_attention_heads decoder_attention_heads",
}
SHAPE = {name: size for size, names in SIZES.items() for name in names.split()}
IDS = {"pad": 0, "bos": 2, "cls": 2, "sep": 3, "eos": 3, "mask": 4, "decoder_start": 0}
SHAPE |= {"vocab_size": 40} | {f"{name}_token_id": token for name, token in IDS.items()}
OWN = {
    "eurobert": {"num_key_value_heads": 1},
    "funnel": {"block_sizes": [1, 1], "num_hidden_layers": None},
    "lilt": {"hidden_size": 96},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 16},
    "modernbert": {"local_attention": 8},
    "reformer": {"axial_pos_embds": False, "is_decoder": False},
    "t5": {"decoder_start_token_id": 0},
    "xlnet": {"max_position_embeddings": None, "num_hidden_layers": None},
    "xmod": {"default_language": "en_XX"},
}
FAST = ("bert", "modernbert", "eurobert", "xlnet")
OTHERS = (  # beside these, each that another test refuses
    *("albert", "bart", "big_bird", "bigbird_pegasus", "camembert", "canine", "convbert", "data2vec-text", "deberta"),
    *("deberta-v2", "distilbert", "electra", "ernie", "esm", "esmc", "flaubert", "fnet", "funnel", "gte", "layoutlm"),
    *("jina_embeddings_v3", "lilt", "longformer", "luke", "mbart", "megatron-bert", "mobilebert", "mpnet", "mra"),
    *("mt5", "mvp", "nomic_bert", "nystromformer", "plbart", "rembert", "roberta", "roberta-prelayernorm", "roc_bert"),
    *("roformer", "t5", "ultrabert", "umt5", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod", "yoso"),
)
UNTRAINED = {  # what a family's own code cannot do, which is said before training
    *("deberta/lora_bert_sst2 bf16", "deberta/qlora_bert bf16"),
    *("longformer/qlora_bert fp32", "longformer/qlora_bert bf16"),
}
TEXTS = ["the movie was great", "bad", "the plot was very very awful and the actor not good", "great great end"]


def tiny(kind: str, folder: Path) -> str:
    """A random encoder of that family and a tokenizer, in `folder`."""
    of_family = CONFIG_MAPPING[kind]
    sizes = {name: size for name, size in SHAPE.items() if hasattr(of_family(), name)} | OWN.get(kind, {})
    base = save_encoder(folder, of_family(**{name: size for name, size in sizes.items() if size is not None}))
    if kind == "canine":  # its tokenizer is Python alone
        CanineTokenizer().save_pretrained(folder)
        (Path(folder) / "tokenizer.json").unlink()
    return base


def train_all(kinds: tuple[str, ...], root: Path, splits: DatasetDict, ways: list[tuple[str, str]]) -> dict[str, str]:
    """For each family below `root` its base, and for each recipe and precision of `ways` an adapter with its logits;
    returns what was refused, and why."""
    refused = {}
    for kind in kinds:
        base = tiny(kind, root / kind / "base")
        for name, precision in ways:
            recipe, profile = own_recipe(name, "own.csv", 200, PROFILES["quick"], base)
            short = {"num_train_epochs": 1, "min_updates": None, "optim": "adamw_torch", "learning_rate": 2e-2}
            recipe, profile = replace(recipe, **short), replace(profile, precision=precision)
            adapter = root / kind / f"{name} {precision}"
            try:
                model = build_model(recipe, base, precision)
                tokenizer = fine_tune(model, recipe, splits, profile, output=adapter).tokenizer
            except ValueError as error:
                refused[f"{kind}/{adapter.name}"] = str(error)
                continue
            assert "LoRA on " in adapted(model) and ("attention" in adapted(model) or kind != "xlnet")
            heads, packed = tuple(head_modules(model.get_base_model())), Linear4bit
            named = list(model.get_base_model().named_modules())
            assert not [name for name, module in named if name.startswith(heads) and isinstance(module, packed)]
            assert any(isinstance(module, packed) for _, module in named) is (name == "qlora_bert"), kind
            ids = tokenizer(TEXTS)["input_ids"]
            np.save(f"{adapter}.npy", predict_logits(model, tokenizer, ids, precision))
            assert np.isfinite(mean_embeddings(base, tokenizer, ids, precision)).all(), kind  # the frozen encoder's
    return refused


def plain_peft(folder: Path, base: Path, precision: str):
    """The adapter as peft alone loads it."""
    in_4bit = nf4_config(DTYPES[precision], head_modules(skeleton(str(base)))) if "qlora" in folder.name else None
    how = {"quantization_config": in_4bit, "device_map": {"": "cpu"}} if in_4bit else {}
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, dtype=torch.float32, **how)
    keep_4bit_layout(model)  # some CPUs' other one takes no odd shapes
    return PeftModel.from_pretrained(model, folder)


def load_all(root: Path) -> None:
    """Writes, for each adapter below `root`, how far its logits are from those before saving, by the way it loads."""
    found = {}
    for expected in sorted(root.glob("*/*.npy")):
        folder, precision, wanted = expected.with_suffix(""), expected.stem.split()[1], np.load(expected)
        torch.manual_seed(99)  # a head that is drawn anew is another one
        ours = SentimentClassifier.from_pretrained(folder, precision)
        merged = merge_adapter(folder, folder / "merged")
        peft = plain_peft(folder, folder.parent / "base", precision)
        plain = AutoModelForSequenceClassification.from_pretrained(merged, dtype=torch.float32)
        ids, logits = ours.tokenizer(TEXTS)["input_ids"], {"ours": ours.logits(TEXTS)}
        logits["peft"] = predict_logits(peft, ours.tokenizer, ids, "fp32")  # some cannot answer under autocast
        logits["merged, ours"] = SentimentClassifier.from_pretrained(merged, "fp32").logits(TEXTS)
        logits["merged"] = predict_logits(plain, ours.tokenizer, ids, "fp32")
        scale = np.ptp(wanted)
        found[str(folder.relative_to(root))] = {
            way: float(abs(one - wanted).max() / scale) for way, one in logits.items()
        }
    (root / "found.json").write_text(json.dumps(found))


WAYS = list(product(("lora_bert_sst2", "qlora_bert"), ("fp32", "bf16")))
GROUPS = [pytest.param(FAST, WAYS[1:3], marks=pytest.mark.slow, id="the rest of these")]
GROUPS += [pytest.param(OTHERS[k::4], WAYS, marks=pytest.mark.slow, id=f"others {k + 1}") for k in range(4)]


@pytest.mark.parametrize(("kinds", "ways"), [(FAST, WAYS[::3]), *GROUPS])
def test_what_loads_is_what_was_trained(kinds, ways, tmp_path, toy_reviews, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "Data"))
    parts = {"train": range(32), "validation": range(32, 48), "test": range(48, 64)}
    splits = DatasetDict({name: toy_reviews.select(rows) for name, rows in parts.items()})
    gc.freeze()  # accelerate collects twice a training
    refused = train_all(kinds, tmp_path, splits, ways)
    gc.unfreeze()
    tried = {f"{kind}/{' '.join(way)}" for kind in kinds for way in ways}
    assert refused.keys() == UNTRAINED & tried, refused
    assert all(" checkpoint, " in why and "\n" not in why for why in refused.values())
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, __file__, str(tmp_path)], env=environment, check=True, timeout=1_500)
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) + len(refused) == len(ways) * len(kinds)
    tolerance = {"fp32": 1e-3, "bf16": 0.2}
    assert {name: ways for name, ways in found.items() if not max(ways.values()) < tolerance[name.split()[-1]]} == {}


REFUSED = {
    "gpt2": "'gpt2' checkpoint, a decoder",
    "qwen3": "'qwen3' checkpoint, a decoder",
    "layoutlmv3": "'layoutlmv3' checkpoint, which is not made for text alone",
    "ibert": "'ibert' checkpoint, without linear layers",
    "squeezebert": "'squeezebert' checkpoint, without linear layers",
    "wav2vec2": "'wav2vec2' checkpoint, which makes no sequence classifier",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_family_that_does_not_go_is_refused_by_name(kind, tmp_path):
    tiny(kind, tmp_path) if kind != "wav2vec2" else CONFIG_MAPPING[kind]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=REFUSED[kind]):
        build_model(own_recipe("lora_bert_sst2", "own.csv", 200, PROFILES["quick"], str(tmp_path))[0], str(tmp_path))


def test_every_family_is_named_here():
    apart = {"layoutlmv2", "markuplm", "mistral4", "modernvbert", "perceiver", "reformer", "tapas", "ultravbert"}
    known = {*FAST, *OTHERS, *REFUSED, *DECODERS, *apart, "t5gemma", "t5gemma2"}
    assert f"the {len({*FAST, *OTHERS})} families" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert FAMILIES.keys() - known == set()


if __name__ == "__main__":
    load_all(Path(sys.argv[1]))

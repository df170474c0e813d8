import nbformat
import torch
from peft import PeftModel
from transformers import BertConfig, BertForSequenceClassification

from helpers.models import build_model
from helpers.profiles import EMBEDDED_BERT, ROOT
from lab.counts import count_step
from lab.ladder import method_model, method_recipe

# At most so many operations a step, and so large a share of the bytes that full fine-tuning saves for backward.
LIMITS = {"full_finetune": (476, 1.0), "lora_query_value": (334, 0.38), "lora": (644, 0.55), "qlora": (775, 0.55)}


def _count(base_model: str, methods=tuple(LIMITS)) -> dict[str, dict[str, int]]:
    counts = {}
    for method in methods:
        model = build_model(method_recipe(method), base_model, "bf16")
        (model.get_base_model() if isinstance(model, PeftModel) else model).set_attn_implementation("sdpa")
        counts[method] = count_step(model, "bf16", rows=4, tokens=128)
    return counts


def test_a_step_dispatches_no_more_operations_and_saves_no_more_bytes():
    counts = _count(EMBEDDED_BERT)
    for method, (operations, share) in LIMITS.items():
        assert counts[method]["operations"] <= operations, method
        assert counts[method]["saved_bytes"] <= share * counts["full_finetune"]["saved_bytes"], method
    assert counts["lora"]["operations"] <= 1.355 * counts["full_finetune"]["operations"]


def test_bert_base_s_shape_keeps_its_shares(tmp_path):
    with torch.random.fork_rng():
        BertForSequenceClassification(BertConfig()).bert.save_pretrained(tmp_path)
    full, lora = _count(str(tmp_path), ["full_finetune", "lora"]).values()
    assert lora["operations"] <= 1.4 * full["operations"] and lora["saved_bytes"] <= 0.43 * full["saved_bytes"]


def test_the_five_lines_of_04_do_what_they_say():
    lines = nbformat.read(ROOT / "notebooks/04_efficiency_analysis.ipynb", as_version=4).cells[0].source
    model = method_model("lora_fp32_base", EMBEDDED_BERT, "bf16")
    before = count_step(model, "bf16", 2, 16)
    exec(lines.split("```python")[1].split("```")[0], {"model": model, "torch": torch})
    after = count_step(model, "bf16", 2, 16)
    assert after["casts"] == 151 < before["casts"] == 377 and after["operations"] < 0.8 * before["operations"]
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}

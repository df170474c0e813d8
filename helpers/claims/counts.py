"""Verdicts counted on the real checkpoints' shapes; each public function decides one claim of `verdicts.CLAIMS`."""

from peft import get_peft_model

from helpers.benchmarks.budget import memory_budget, real_model
from helpers.claims.evidence import CONFIRMED, ONLY_WHEN, REFUTED, Bar, Evidence, Verdict
from helpers.recipes import RECIPES


def half_a_percent(evidence: Evidence) -> Verdict:
    budget = memory_budget(RECIPES["qlora_bert"])
    share = budget.trainable / budget.total
    verdict = CONFIRMED if 0.0045 <= share <= 0.0055 else REFUTED
    return Verdict(
        f"{share:.2%}, exact (bert-base-uncased's shape)",
        verdict,
        f"{budget.trainable:,} of {budget.total:,} parameters.",
        ("helpers/benchmarks/budget.py",),
        (Bar("share", (0.0045, 0.0055), share, share, "trained", share),),
    )


def weights_in_4bit(evidence: Evidence) -> Verdict:
    fp32 = sum(memory_budget(RECIPES["qlora_bert"].full_finetune()).weights.values()) / 1e6
    four, least = (
        sum(memory_budget(RECIPES["qlora_bert"], dtype=dtype).weights.values()) / 1e6 for dtype in ("fp32", "bf16")
    )
    verdict = CONFIRMED if four < 60 else REFUTED
    return Verdict(
        f"{fp32:.0f} MB and {four:.0f} MB ({least:.0f} MB with the rest in half precision), exact",
        verdict,
        "Embeddings, a fifth of BERT, do not go into 4 bits.",
        ("helpers/benchmarks/budget.py",),
        (Bar("share", (55 / 440, 55 / 440), least / fp32, four / fp32, "of the bytes in fp32"),),
    )


def paged_optimizer(evidence: Evidence) -> Verdict:
    small, full = memory_budget(RECIPES["qlora_bert"]), memory_budget(RECIPES["qlora_bert"].full_finetune())
    saved, saved_full = (budget.adamw - budget.adamw_8bit for budget in (small, full))
    return Verdict(
        f"{saved / 1e6:.1f} MB with LoRA, {saved_full / 1e6:,.0f} MB in full fine-tuning, exact",
        f"{ONLY_WHEN} every weight trains" if saved < 0.05 * saved_full else CONFIRMED,
        "LoRA leaves next to no optimizer state to shrink.",
        ("helpers/benchmarks/budget.py",),
    )


def distilbert_share(evidence: Evidence) -> Verdict:
    budget = memory_budget(RECIPES["lora_distilbert_qv"])
    share = budget.trainable / budget.total
    return Verdict(
        f"{share:.2%}, exact (distilbert-base-uncased's shape)",
        CONFIRMED if 0.01 <= share <= 0.02 else REFUTED,
        "590,592 of them are the head's pre_classifier, not LoRA.",
        ("helpers/benchmarks/budget.py",),
        (Bar("share", (0.01, 0.02), share, share, "trained", share),),
    )


def masks(evidence: Evidence) -> Verdict:
    recipe = RECIPES["lora_bert_cased"]
    budget = memory_budget(recipe)
    share, refused = budget.trainable / budget.total, False
    config = recipe.lora_config()
    config.r = 0.2
    try:
        get_peft_model(real_model(recipe.base_model), config)
    except TypeError:  # there is no matrix with 0.2 rows
        refused = True
    return Verdict(
        f"peft {'refuses' if refused else 'takes'} r = 0.2; r = {recipe.r} trains {share:.3%}, exact",
        REFUTED if refused and share < 0.2 else CONFIRMED,
        "r is a rank, a whole number; nothing is masked (notebook 06).",
        ("helpers/benchmarks/budget.py", "notebooks/06_lora_bert.ipynb"),
    )

"""The sources' claims, each with the function that decides it from the records in `Data/`.

A claim is never decided by hand: a function reads records and returns a verdict, or says which run is missing.
"""

from helpers.claims.accuracy import (
    MARGIN,
    competitive,
    epochs,
    few_parameters,
    out_of_the_box,
    pipeline,
    small_batch,
    stated_accuracy,
    untrained_head,
)
from helpers.claims.costs import (
    ABOUT_70,
    LESS,
    SHAPES_NEEDED,
    base_untouched,
    checkpointing,
    memory_saved,
    seventy_percent,
    trains_faster,
    two_to_three_times,
)
from helpers.claims.counts import distilbert_share, half_a_percent, masks, paged_optimizer, weights_in_4bit
from helpers.claims.evidence import UNDECIDED, Claim, Evidence, Missing, Verdict
from helpers.claims.formats import half_precision
from helpers.profiles import Profile

EVERY_SHAPE = f"at {SHAPES_NEEDED} shapes of batch or more, of BERT-base and of the embedded encoder"
BOTH_LAYERS = "with adapters on every linear layer, and on query and value where that was measured"
WHOLE = "by its whole interval; inside at some shapes only, confirmed only there"
EXACT = "counted on the real checkpoint's shape"
TRIVIAL = "as written it is better than the frozen encoder and than the head alone"
NO_WORSE = f"no more than {MARGIN * 100:.0f} points worse, by the whole interval,"
HUB = "its interval reaches what is stated, on the real checkpoint under `hub`"

CLAIMS = (
    Claim("A1", "query-only", "LoRA uses less memory than full fine-tuning",
          f"its own peak is below {LESS:.0%} of full fine-tuning's {EVERY_SHAPE}", memory_saved),
    Claim("A2", "query-only", "LoRA trains faster than full fine-tuning",
          f"it is faster {EVERY_SHAPE}, {WHOLE}; {BOTH_LAYERS}", trains_faster),
    Claim("A3", "query-only", "accuracy improves with few trained parameters (r=4, q_lin only)",
          TRIVIAL, few_parameters),
    Claim("A4", "query-only", "high accuracy even with batch size 4",
          f"{NO_WORSE} than batches of 16 and 64 that see as many reviews, each at its best rate", small_batch),
    Claim("B1", "bert-qlora", "about 0.5 % of parameters train", f"0.45 to 0.55 %, {EXACT}", half_a_percent),
    Claim("B2", "bert-qlora", "weights take about 55 MB in 4 bits against 440 MB in fp32",
          f"less than 60 MB, {EXACT}", weights_in_4bit),
    Claim("B3", "bert-qlora", "total GPU memory falls by about 70 %",
          f"by {ABOUT_70:.0%} or more of a GPU's peak, at {SHAPES_NEEDED} shapes of batch of BERT-base",
          seventy_percent),
    Claim("B4", "bert-qlora", "93 to 94 % test accuracy, weighted F1 0.93 to 0.94", HUB,
          stated_accuracy("qlora_bert", 0.93, 0.94, weighted_f1=True)),
    Claim("B5", "bert-qlora", "accuracy competitive with full fine-tuning",
          f"{NO_WORSE} at 500, 2,000 and all sentences, each at its best rate", competitive),
    Claim("B6", "bert-qlora", "the paged 8-bit optimizer saves further memory",
          f"5 % or more of what it saves where every weight trains, else only there, {EXACT}", paged_optimizer),
    Claim("B7", "bert-qlora", "fp16 gives speed without loss of precision",
          "on a GPU it is faster than fp32 and its accuracy is not worse", half_precision),
    Claim("B8", "bert-qlora", "gradient checkpointing trades compute for memory",
          f"its peak is below {LESS:.0%} and it is slower, {WHOLE}", checkpointing),
    Claim("C1", "thirty-epoch", "85.3 % validation accuracy after 30 epochs", f"{HUB}, on test rows",
          stated_accuracy("lora_bert_cased", 0.853)),
    Claim("C2", "thirty-epoch", "r = 0.2 masks 80 %, only 20 % of weights update",
          "peft takes a rank of 0.2, or the least rank that it takes trains 20 % of the weights", masks),
    Claim("C3", "thirty-epoch", "LoRA speeds training up 2 to 3 times",
          f"2 to 3 times as fast {EVERY_SHAPE}, {WHOLE}; {BOTH_LAYERS}", two_to_three_times),
    Claim("C4", "thirty-epoch", "better than the model out of the box",
          f"{TRIVIAL}; if only our version is, confirmed only then", out_of_the_box),
    Claim("D1", "Assignment 7", "1 to 2 % of DistilBERT's parameters train", f"1 to 2 %, {EXACT}", distilbert_share),
    Claim("D2", "Assignment 7", "the untrained head scores about 50 to 60 %",
          "its interval holds 50 %", untrained_head),
    Claim("D3", "Assignment 7", "over 90 % after LoRA", HUB, stated_accuracy("lora_distilbert_qv", 0.90, 1.0)),
    Claim("E1", "SST-2 post", "SST-2: 53.0, 65.4, 77.0 % after epochs 1, 2, 3",
          "the third within four points, on the real checkpoint under `hub`", epochs),
    Claim("E2", "SST-2 post", "the base model stays untouched",
          "no tensor of the base differs in a bit", base_untouched),
    Claim("E3", "SST-2 post", "the saved model answers through pipeline with POSITIVE",
          "it does on a base that names no labels; if only where they are named, confirmed only then", pipeline),
)  # fmt: skip


def decide_all(profile: Profile | None = None) -> dict[str, Verdict]:
    """A verdict for each claim's id, on the records of `profile` and the committed ones (None: only those).

    A claim whose record is missing is "not decided here", with the command that makes it.
    """
    evidence, verdicts = Evidence(profile), {}
    for claim in CLAIMS:
        try:
            verdicts[claim.id] = claim.decide(evidence)
        except Missing as missing:
            verdicts[claim.id] = Verdict("", f"{UNDECIDED}: run {missing}", "", ())
    return verdicts


def markdown_table(verdicts: dict[str, Verdict], root: str = "") -> str:
    """The claims table with links to the records; `root` leads from where it is shown to the repository's root."""
    lines = ["| | the source says | measured here | verdict |", "|---|---|---|---|"]
    for claim in CLAIMS:
        verdict = verdicts[claim.id]
        links = " ".join(f"[[{index}]]({root}{path})" for index, path in enumerate(verdict.records, 1))
        measured = " ".join(part for part in (verdict.measured, links) if part)
        decided = " ".join(part for part in (f"**{verdict.verdict}**.", verdict.sentence) if part)
        lines.append(f"| {claim.id} | {claim.text} | {measured} | {decided} |")
    return "\n".join(lines)

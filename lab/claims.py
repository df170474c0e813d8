"""`python -m lab.claims`: the write-ups' claims, and the verdicts on them, from the records in `Data/`, yours first.

`claims.yaml` has each claim's source, its words, the rule by which it is decided and a label for the figure. A claim is
never decided by hand: a function reads records and returns a verdict.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import yaml

from helpers.profiles import Profile, current_profile
from helpers.start import command
from lab import claims_accuracy as accuracy
from lab import claims_costs as costs
from lab.verdict import UNDECIDED, Evidence, Verdict

DECIDED_BY: dict[str, Callable[[Evidence], Verdict]] = {
    "A1": partial(costs.lora_over_full, what=costs.MEMORY, at_least=0, at_most=costs.LESS),
    "A2": partial(costs.lora_over_full, what=costs.SPEED, at_least=1),
    "A3": partial(accuracy.beats_baselines, recipe="lora_distilbert_q", variants=("as_written",)),
    "A4": accuracy.small_batch,
    "B1": partial(costs.share_that_trains, recipe="qlora_bert", at_least=0.0045, at_most=0.0055),
    "B2": costs.weights_in_4bit,
    "B3": costs.seventy_percent,
    "B4": partial(accuracy.stated_accuracy, recipe="qlora_bert", at_least=0.93, at_most=0.94),
    "B5": accuracy.competitive,
    "B6": costs.paged_optimizer,
    "B7": costs.half_precision,
    "B8": costs.checkpointing,
    "C1": partial(accuracy.stated_accuracy, recipe="lora_bert_cased", at_least=0.853),
    "C2": costs.masks,
    "C3": partial(costs.lora_over_full, what=costs.SPEED, at_least=2, at_most=3),
    "C4": partial(accuracy.beats_baselines, recipe="lora_bert_cased", variants=("as_written", "improved")),
    "D1": partial(costs.share_that_trains, recipe="lora_distilbert_qv", at_least=0.01, at_most=0.02),
    "D2": accuracy.untrained_head,
    "D3": partial(accuracy.stated_accuracy, recipe="lora_distilbert_qv", at_least=0.90, at_most=1.0),
    "E1": accuracy.epochs,
    "E2": costs.base_untouched,
    "E3": costs.pipeline,
}


@dataclass(frozen=True)
class Claim:
    """A statement of one of the five write-ups: a label of it, the source's words, and when it is confirmed."""

    id: str
    source: str
    label: str
    words: str
    rule: str


_FILE = Path(__file__).with_suffix(".yaml")
CLAIMS = [Claim(id, **fields) for id, fields in yaml.safe_load(_FILE.read_text(encoding="utf-8")).items()]


def decide(claim: Claim, profile: Profile | None = None) -> Verdict:
    """The verdict on `claim` from the committed records, after those of `profile` where it has any.

    Where a record is missing it is "not decided here", and says what is missing.
    """
    evidence = Evidence(profile)
    try:
        verdict = DECIDED_BY[claim.id](evidence)
    except (FileNotFoundError, ValueError) as missing:
        return Verdict(UNDECIDED, {}, {}, needs=str(missing))
    return replace(verdict, records=tuple(evidence.read) or ("lab/budget.py",))


def decide_all(profile: Profile | None = None) -> dict[str, Verdict]:
    """A verdict for each claim's id (see `decide`)."""
    return {claim.id: decide(claim, profile) for claim in CLAIMS}


def claims() -> None:
    """Prints every claim with its verdict, the numbers and the records it rests on."""
    for claim in CLAIMS:
        verdict = decide(claim, current_profile())
        print(f"{claim.id}  {claim.label}: {verdict.kind}", f"(needs {verdict.needs})" if verdict.needs else "")
        for name, value in verdict.numbers.items():
            print(f"      {value:13,}  {name}" if isinstance(value, int) else f"      {value:13.4f}  {name}")
        print(*(f"      {path}\n" for path in verdict.records), sep="")


main = command(claims)

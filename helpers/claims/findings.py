"""The first screen of the README: what was found, with its numbers, and five of the claims; all from the records."""

from collections import Counter

from helpers.benchmarks.records import COMMAND
from helpers.claims.costs import seventy_percent, trains_faster
from helpers.claims.evidence import CONFIRMED, ONLY_WHEN, REFUTED, UNDECIDED, Evidence, Verdict
from helpers.claims.scale import BAG, FULL, LORA, QLORA, gains_at_scale, ours, rows_at_scale
from helpers.claims.verdicts import CLAIMS
from helpers.evaluation import PairedComparison
from helpers.results import RunRecord
from helpers.studies.compare import compare_runs, summarize

SHOWN = ("A2", "B3", "B2", "C2", "E3")  # of the claims, in the README


def rate_gain(evidence: Evidence) -> PairedComparison:
    """What the SST-2 post gains, as written but for the learning rate: 1e-3 less Trainer's default of 5e-5."""
    rows = _as_written(evidence)
    sides = tuple([row for row in rows if row["learning_rate"] == rate] for rate in (1e-3, 5e-5))
    return compare_runs({"gain": sides})["gain"]


def rank_gains(evidence: Evidence) -> dict[int, PairedComparison]:
    """What each rank gains over rank 16, each at its own best rate."""
    rows = evidence.study("ranks")[0].rows
    by_rank = {rank: [row for row in rows if row["r"] == rank] for rank in sorted({row["r"] for row in rows})}
    return compare_runs({rank: (runs, by_rank[16]) for rank, runs in by_rank.items() if rank != 16})


def _as_written(evidence: Evidence) -> list[dict]:
    rows = evidence.study("pooler")[0].rows
    return [row for row in rows if row["pooler"] == "identity" and row["n_train"] == 2_000]


def findings(verdicts: dict[str, Verdict]) -> str:
    """How many claims are decided, and three findings as a Markdown list, each with its numbers and its record."""
    evidence = Evidence()
    found = _of_all_reviews(evidence), _of_the_rate(evidence), _of_the_rank(evidence)
    return "\n".join([_decided(verdicts), "", *(f"- {finding}" for finding in found)])


def _of_the_rate(evidence: Evidence) -> str:
    study, path = evidence.study("pooler")
    by_rate = {point["learning_rate"]: point for point in summarize(_as_written(evidence), ["learning_rate"])}
    return (
        f"**In {max(row['updates'] for row in study.rows)} updates at the default learning rate LoRA hardly learns.** "
        "The SST-2 post, as written but for its rate, scores "
        f"{by_rate[5e-5]['accuracy']:.1%} at Trainer's default of 5e-5 and {by_rate[1e-3]['accuracy']:.1%} at 1e-3: "
        f"{rate_gain(evidence).points} ({study.settings['base_model']}, 2,000 sentences of Rotten Tomatoes, "
        f"{len(by_rate[1e-3]['accuracies'])} seeds, n = {study.settings['n_test']:,}, [record]({path}))."
    )


def _of_the_rank(evidence: Evidence) -> str:
    study, path = evidence.study("ranks")
    points, gains = summarize(study.rows, ["r", "learning_rate"]), rank_gains(evidence).values()
    seen = " and ".join(dict.fromkeys(gain.verdict for gain in gains))
    farthest = max(max(-gain.low, gain.high) for gain in gains)
    scores = [f"{point['accuracy']:.1%}" for point in points]
    return (
        "**No rank is seen to be better than 16, once each has its own rate.** "
        f"Ranks {_and([point['r'] for point in points])} score {_and(scores)}: {seen}, "
        f"none more than {100 * farthest:.1f} points from rank 16 by its interval; the best rate falls from "
        f"{points[0]['learning_rate']:g} to {points[-1]['learning_rate']:g} (as above, three seeds, [record]({path})). "
        "Whether every linear layer does better than query and value is not settled (notebooks "
        "[05](notebooks/05_rank_sensitivity.ipynb) and [08](notebooks/08_claims.ipynb))."
    )


def _of_all_reviews(evidence: Evidence) -> str:
    rows = rows_at_scale(evidence)
    gains = gains_at_scale(rows)
    first, _ = evidence.at_scale(LORA, "improved")
    recipes = {"LoRA": LORA, "QLoRA": QLORA} if ("QLoRA", "LoRA") in gains else {"LoRA": LORA}
    points = {name: summarize(ours(rows, recipe), ["recipe"])[0] for name, recipe in recipes.items()}
    scores = [f"{name} {_score(points[name], evidence.seeds(recipes[name], 'improved'))}" for name in recipes]
    over = f"{gains['LoRA', BAG].points} over a bag of words ({gains['LoRA', BAG].verdict})"
    if ("LoRA", FULL) in gains:
        shared = {row["seed"] for row in rows if row["method"] == FULL} & {row["seed"] for row in ours(rows, LORA)}
        seeds = "one seed each" if len(shared) == 1 else f"{len(shared)} seeds each"
        over += f", {gains['LoRA', FULL].points} from {FULL} ({seeds}, {gains['LoRA', FULL].verdict})"
    if "QLoRA" in recipes:
        gain = gains["QLoRA", "LoRA"]
        over += f", QLoRA {gain.points} from LoRA with the same seed ({gain.verdict})"
    encoder = first.total_params - first.trainable_params
    return (
        f"**{encoder / 1e6:.1f} M parameters that pip installs, on {first.device}, reach "
        f"{points['LoRA']['accuracy']:.1%} on reviews held out of IMDb's training split.** Trained on "
        f"{first.n_train:,} of its reviews, tested on {first.n_test:,} others: {' and '.join(scores)}; {over}."
    )


def _score(point: dict, runs: list[tuple[RunRecord, str]]) -> str:
    minutes = sum(run.train_seconds for run, _ in runs) / len(runs) / 60
    records = ", ".join(f"[record]({path})" for _, path in runs)
    seeds = f"mean of {len(runs)} seeds, " if len(runs) > 1 else ""
    return (
        f"{point['accuracy']:.1%} [{point['low']:.1%}, {point['high']:.1%}] in {minutes:.0f} minutes ({seeds}{records})"
    )


def _decided(verdicts: dict[str, Verdict]) -> str:
    kinds = Counter(verdict.kind for verdict in verdicts.values())
    waits = Counter(_waits_for(verdict) for verdict in verdicts.values() if verdict.kind == UNDECIDED)
    return (
        f"Of {len(CLAIMS)} claims {len(CLAIMS) - kinds[UNDECIDED]} are decided: {kinds[CONFIRMED]} confirmed, "
        f"{kinds[ONLY_WHEN]} under a condition, {kinds[REFUTED]} refuted. "
        f"The others wait for {_and([f'{what} ({count})' for what, count in waits.items()])}."
    )


def _waits_for(verdict: Verdict) -> str:
    if "PROFILE=hub" in verdict.sentence:
        return "a run of the real checkpoint under `PROFILE=hub`"
    if "make full" in verdict.verdict:
        return "`make full`"
    if COMMAND in verdict.verdict:
        return "a device's measurement that leaves nothing open"
    return "a GPU's record" if "GPU" in verdict.verdict + verdict.sentence else "rows that could tell"


def short_table(verdicts: dict[str, Verdict]) -> str:
    """Five of the claims as a Markdown table: claim, number, verdict."""
    lines = ["| a write-up says | measured here | verdict |", "|---|---|---|"]
    for claim in (claim for id in SHOWN for claim in CLAIMS if claim.id == id):
        verdict = verdicts[claim.id]
        of_devices = claim.decide in (trains_faster, seventy_percent)
        measured = verdict.measured if of_devices else verdict.measured.partition(" (")[0]
        lines.append(f"| {claim.text} | {measured} | {verdict.verdict} |")
    return "\n".join(lines)


def _and(values: list) -> str:
    *first, last = map(str, values)
    return f"{', '.join(first)} and {last}"

"""`python -m helpers.claims`: the findings and claims in the README, computed from the records in `Data/`."""

import argparse
import shutil
import sys
from pathlib import Path

from helpers import profiles
from helpers.base.paths import ROOT
from helpers.base.writing import new_file, write_text
from helpers.claims.evidence import KEPT, Evidence, Missing, Verdict, kept, relative_path
from helpers.claims.findings import findings, short_table
from helpers.claims.scale import rows_at_scale, scale_table
from helpers.claims.verdicts import CLAIMS, decide_all
from helpers.profiles import PROFILES, Profile

README = ROOT / "README.md"
PARTS = ("findings", "claims", "scale")  # each between two markers


def markers(part: str) -> tuple[str, str]:
    """The lines around a part of the README that is computed."""
    return f"<!-- {part}: python -m helpers.claims -->", f"<!-- end of {part} -->"


def write_readme(verdicts: dict[str, Verdict], path: Path = README) -> bool:
    """Puts findings and verdicts between the markers in `path`; returns whether that changed it.

    Raises ValueError when the markers are missing, Missing where a record is that the findings rest on.
    """
    text = new = path.read_text(encoding="utf-8")
    computed = findings(verdicts), short_table(verdicts), scale_table(rows_at_scale(Evidence()))
    for part, says in zip(PARTS, computed, strict=True):
        start, end = markers(part)
        if start not in text or end not in text:
            raise ValueError(f"{path.name} lacks the lines {start} and {end}.")
        new = f"{new.split(start)[0]}{start}\n{says}\n{end}{new.split(end)[1]}"
    if new != text:
        write_text(path, new)
    return new != text


def adopt(profile: Profile) -> list[Path]:
    """Copies a profile's run records and studies to `Data/<profile>/evidence`, to be committed; returns the copies."""
    folder = profiles.DATA_DIR / profile.name / "results"
    copies = []
    for path in sorted(folder.rglob("[!.]*.json")):
        copies.append(kept(profile.name) / path.name)
        with new_file(copies[-1]) as temporary:
            shutil.copy(path, temporary)
    return copies


def main(arguments: list[str] | None = None) -> int:
    """Prints the verdicts and brings the README up to date; the exit status is 1 where a record for it is missing."""
    parser = argparse.ArgumentParser(prog="python -m helpers.claims", description=__doc__)
    parser.add_argument("--adopt", choices=KEPT, help="first copy this profile's records to its evidence/")
    options = parser.parse_args(arguments)
    if options.adopt:
        copies = adopt(PROFILES[options.adopt])
        print(f"{len(copies)} records copied to {relative_path(kept(options.adopt))}")
    verdicts = decide_all()
    for claim in CLAIMS:
        print(f"{claim.id}  {verdicts[claim.id].verdict:40s} {verdicts[claim.id].measured}")
    try:
        print("README.md written" if write_readme(verdicts) else "README.md was up to date")
    except Missing as missing:
        print(f"README.md is as it was: a record that it rests on is missing. Run: {missing}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

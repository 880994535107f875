"""All faults, and the table of what happened in ``docs/reliability.md``: ``make faults``.

    python -m tests.faults [-k WORD] [-j 3] [--no-write]

Needs root (it mounts small disks) and Debian's faketime. Exit status 1 where something was not as it should be.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.attempt import Attempt
from tests.faults.faults import FAULTS, Fault, as_row, dump, problems

PAGE = Path("docs/reliability.md")
BEGIN, END = "<!-- table of faults: begin -->", "<!-- table of faults: end -->"


def table(rows: list[dict[str, object]]) -> str:
    """The rows as Markdown."""
    lines = ["| fault | scenario | exit status | ended after | kept | said |", "|---|---|---|---|---|---|"]
    for row in rows:
        wrong = "; ".join(map(str, row["wrong"]))  # type: ignore[arg-type]
        said = f"**{wrong}**" if wrong else str(row["said"]).replace("|", "\\|")
        cells = (row["fault"], row["scenario"], row["status"], f"{row['seconds']} s", row["kept"], said)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def write(rows: list[dict[str, object]]) -> None:
    """Put the table into the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    when = f"Made by `make faults` on {time.strftime('%F')}, {platform.machine()}, Python {platform.python_version()}."
    wrong = sum(bool(row["wrong"]) for row in rows)
    said = f"{when} {len(rows)} cases, {wrong} not as they should be."
    PAGE.write_text(f"{before}{BEGIN}\n{said}\n\n{table(rows)}\n{END}{after}")


def tried(fault: Fault, scenario: str) -> dict[str, object]:
    """One case; its row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        attempt = Attempt(Path(folder), scenario)
        try:
            fault.do(attempt)
            wrong = problems(fault, attempt)
        except AssertionError as error:
            wrong = [" ".join(str(error).split())[:300], *map(str, attempt.left_behind(0))]
        row = as_row(fault, attempt, wrong)
    print(f"{'ok ' if not wrong else 'BAD'} {fault.name}, {scenario}: {row}", file=sys.stderr, flush=True)
    return row


def main() -> int:
    """Run them; see the module."""
    parser = argparse.ArgumentParser("python -m tests.faults")
    parser.add_argument("-k", default="", metavar="WORD", help="only faults with this word")
    parser.add_argument("-j", dest="jobs", type=int, default=3, metavar="N", help="so many at a time: they mostly wait")
    parser.add_argument("--no-write", action="store_true", help="leave docs/reliability.md as it is")
    options = parser.parse_args()
    cases = [(fault, scenario) for fault in FAULTS for scenario in fault.scenarios if options.k in fault.name]
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda case: tried(*case), cases))
    print(dump(rows))
    if not options.no_write and not options.k:
        write(rows)
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())

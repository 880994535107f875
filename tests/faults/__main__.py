"""All faults, and the table of what happened in ``docs/reliability.md``: ``make faults``.

    python -m tests.faults [-k WORD] [-j 3] [--no-write]

Needs root (it mounts small disks) and a C compiler (the clock of one run). Exit status 1 where something was not as it
should be.
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


HEAD = "| fault | scenario | exit status | ended after | kept | said |\n|---|---|---|---|---|---|"


def line(row: dict[str, object]) -> str:
    """A row in Markdown; what is wrong stands in bold."""
    wrong = "; ".join(map(str, row["wrong"]))  # type: ignore[arg-type]
    said = f"**{wrong}**" if wrong else str(row["said"]).replace("|", "\\|")
    cells = (row["fault"], row["scenario"], row["status"], f"{row['seconds']} s", row["kept"], said)
    return "| " + " | ".join(map(str, cells)) + " |"


def case(text: str) -> tuple[str, ...]:
    """The fault and the scenario of a line."""
    return tuple(cell.strip() for cell in text.split("|")[1:3])


def write(rows: list[dict[str, object]]) -> None:
    """Put the rows into the page's table, in place of those of the same cases."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    old, _, after = rest.partition(END)
    lines = {case(text): text for text in old.splitlines() if text.startswith("| ")} | {
        case(text): text for text in map(line, rows)
    }
    order = [(fault.name, scenario) for fault in FAULTS for scenario in fault.scenarios]
    kept = [lines[known] for known in order if known in lines]
    when = f"Made by `make faults` on {time.strftime('%F')}, {platform.machine()}, Python {platform.python_version()}."
    wrong = sum("**" in text for text in kept)
    said = f"{when} {len(kept)} of {len(order)} cases, {wrong} not as they should be."
    table = "\n".join([HEAD, *kept])
    PAGE.write_text(f"{before}{BEGIN}\n{said}\n\n{table}\n{END}{after}")


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
    parser.add_argument("-k", default="", metavar="WORD", help="only faults with this word; other rows stay")
    parser.add_argument("-j", dest="jobs", type=int, default=3, metavar="N", help="so many at a time: they mostly wait")
    parser.add_argument("--no-write", action="store_true", help="leave docs/reliability.md as it is")
    options = parser.parse_args()
    cases = [(fault, scenario) for fault in FAULTS for scenario in fault.scenarios if options.k in fault.name]
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda case: tried(*case), cases))
    print(dump(rows))
    if not options.no_write:
        write(rows)
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())

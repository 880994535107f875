"""Runs MLCommons' own submission checker, from a checkout that the user names, and says its messages in readable words.

None of its code is here: it is started as a process of its own (``python -m submission_checker.main``) and its log is
read. Source of the messages: mlcommons/inference, ``tools/submission/submission_checker``, round v6.1.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlperf_exp.errors import RunFailed, UserError
from mlperf_exp.submission.messages import MESSAGES, SILENT
from mlperf_exp.submission.rules import ROUND
from mlperf_exp.submission.scenario import Finding

_TIMEOUT_S = 3600.0
_LINE = re.compile(r"^(?:\[[^\]]*?(?P<level>INFO|WARNING|ERROR)\]|(?P<plain>INFO|WARNING|ERROR):\w+:)\s*(?P<text>.*)$")


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the official checker said: whether it accepts the package, its findings, and its own last words."""

    accepted: bool
    findings: tuple[Finding, ...]
    summary: tuple[str, ...]


def run(package: Path, checkout: Path, submitter: str) -> Opinion:
    """Let the checker of the checkout judge the package.

    Raises:
        UserError: there is no checker in that place.
        RunFailed: it broke.
    """
    tools = next((path for path in (checkout / "tools" / "submission", checkout) if _is_checker(path)), None)
    if tools is None:
        problem = f"{checkout} holds no tools/submission/submission_checker"
        raise UserError("--official", problem, "Name a checkout of https://github.com/mlcommons/inference")
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable, "-m", "submission_checker.main", "--input", str(package.absolute()),
            "--version", ROUND, "--submitter", submitter, "--csv", str(Path(scratch) / "summary.csv"),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, cwd=tools, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise RunFailed(f"MLCommons' checker did not end within {_TIMEOUT_S:g} s") from None
    lines = (done.stdout + done.stderr).splitlines()
    if done.returncode not in (0, 1) or not any("SUMMARY:" in line for line in lines):
        last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        raise RunFailed(f"MLCommons' checker broke (status {done.returncode}): {last.strip()}")
    return Opinion(done.returncode == 0, tuple(translate(lines, package)), tuple(_summary(lines)))


def translate(lines: list[str], package: Path) -> list[Finding]:
    """The checker's errors and warnings in our words, each once; what is not known is passed on as it stands."""
    found: dict[Finding, None] = {}
    for line in lines:
        match = _LINE.match(line)
        if match is None or (match["level"] or match["plain"]) == "INFO":
            continue
        text = match["text"].strip()
        in_open = text.startswith(f"{package.absolute()}/open/")
        if in_open and "accuracy not met" in text:
            continue  # the open division need not reach it, and the checker takes it
        if not any(re.fullmatch(pattern, text) for pattern in SILENT):
            found[_finding(text, package)] = None
    return list(found)


def _finding(text: str, package: Path) -> Finding:
    for pattern, words, remedy in MESSAGES:
        match = re.fullmatch(pattern, text)
        if match is not None:
            groups = [_short(group, package) for group in match.groups(default="")]
            where = next((group for group in groups if "/" in group), "the package")
            return Finding(where, words.format(*groups).rstrip("."), remedy)
    return Finding("MLCommons' checker", _short(text, package).rstrip("."), "See its source for what it means")


def _short(text: str, package: Path) -> str:
    return text.replace(f"{package.absolute()}/", "")


def _summary(lines: list[str]) -> list[str]:
    """Its own words on results and the whole."""
    wanted = re.compile(r"(?:INFO\] |ERROR\] |:main:)(Results=\d.*|SUMMARY: .*)$")
    return [match[1] for line in lines if (match := wanted.search(line))]


def _is_checker(folder: Path) -> bool:
    return (folder / "submission_checker" / "main.py").is_file()

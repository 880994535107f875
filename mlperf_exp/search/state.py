"""What a search knows so far, in ``search.json`` after each probe: a search that was killed goes on from there."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlperf_exp import hashes
from mlperf_exp.config import Search
from mlperf_exp.errors import UserError
from mlperf_exp.files import write_json
from mlperf_exp.inputs import Inputs
from mlperf_exp.messages import Measurement, Plan
from mlperf_exp.search.rates import Probe, bracket, found

log = logging.getLogger(__name__)
FILE = "search.json"


def settled(plan: Plan, measurement: Measurement) -> Plan:
    """The plan with the rate that its last full run had, where there was a search."""
    rate = (measurement.search or {}).get("target_qps")
    if rate is None:
        return plan
    return replace(plan, config=replace(plan.config, scenario=replace(plan.config.scenario, target_qps=rate)))


def unfinished(plan: Plan) -> bool:
    """Whether the plan's folder holds a search that was interrupted, which this plan may go on with."""
    return plan.config.search is not Search.off and (_read(plan.run_dir) or {}).get("finished") is False


class State:
    """The probes so far.

    Raises:
        UserError: the folder holds the search of another plan.
    """

    def __init__(self, plan: Plan, inputs: Inputs) -> None:
        self._path = plan.run_dir / FILE
        self._identity = hashes.identity(plan, inputs)
        self._finished = False
        self.probes: list[Probe] = []
        earlier = _read(plan.run_dir)
        if earlier is None:
            return
        for name, value in self._identity.items():
            if earlier.get(name) != value:
                what = "engine" if name == "engine_hash" else "load"
                raise UserError(
                    "hydra.run.dir",
                    f"{self._path} is a search with another {what}",
                    "Give this one a folder of its own, or the command that the search was started with",
                )
        self.probes = [Probe(**probe) for probe in earlier["probes"]]
        log.info("search: going on from %d probes in %s", len(self.probes), self._path)

    def add(self, probe: Probe) -> None:
        """Keep one more probe."""
        self.probes.append(probe)
        said = "valid" if probe.valid else f"not valid: {probe.reason}"
        log.info("search: probe %d at %.4g queries/s, %s", probe.number, probe.target_qps, said)
        self._save()

    def done(self) -> None:
        """The search and its full run have come to their end."""
        self._finished = True
        self._save()

    def as_dict(self) -> dict[str, Any]:
        """What ``search.json`` holds."""
        low, high = bracket([probe for probe in self.probes if not probe.full])
        runs = [probe for probe in self.probes if probe.full]
        return {
            **self._identity,
            "finished": self._finished,
            "target_qps": runs[-1].target_qps if runs else None,
            "confirmed_qps": found(self.probes),
            "valid_probe_qps": low,
            "invalid_probe_qps": high,
            "probes": [probe.as_dict() for probe in self.probes],
        }

    def _save(self) -> None:
        write_json(self._path, self.as_dict())


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / FILE
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text())
        [Probe(**probe) for probe in value["probes"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError("hydra.run.dir", f"{path} cannot be read", "Give this run a folder of its own") from None
    return dict(value)

"""A search's probes as child runs in MLflow, from ``search.json``; light: the caller's client is all it needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlperf_exp.track import content
from mlperf_exp.track.tracker import read_object

FILE = "search.json"


class Probes:
    """Sends each probe once, as a finished child run of the search's own run."""

    def __init__(self, run_dir: Path, run_id: str) -> None:
        self._path, self._run_id = run_dir / FILE, run_id
        self._sent: set[str] = set()

    def send(self, client: Any, parent: Any) -> None:
        """Send what ``search.json`` holds and MLflow does not have yet; ``parent`` is MLflow's run of the search."""
        for probe in read_object(self._path).get("probes") or ():
            own_id = f"{self._run_id}/probe-{probe['number']:02d}"
            if own_id in self._sent:
                continue
            query = f"tags.`{content.RUN_ID_TAG}` = '{own_id}'"
            known = client.search_runs([parent.info.experiment_id], query, max_results=1)
            if not known or known[0].info.status == "RUNNING":
                self._create(client, parent, own_id, probe, known[0].info.run_id if known else None)
            self._sent.add(own_id)

    def _create(self, client: Any, parent: Any, own_id: str, probe: Mapping[str, Any], run_id: str | None) -> None:
        kind = "full run" if probe["full"] else "probe"
        if run_id is None:
            tags = {
                content.RUN_ID_TAG: own_id,
                "mlflow.parentRunId": parent.info.run_id,
                "kind": kind,
                "verdict": "valid" if probe["valid"] else "invalid",
                **({"verdict_reasons": probe["reason"]} if probe["reason"] else {}),
            }
            name = f"{kind} {probe['number']} at {probe['target_qps']:.4g} queries/s"
            run = client.create_run(parent.info.experiment_id, tags=content.clean_tags(tags), run_name=name)
            run_id = run.info.run_id
            client.log_param(run_id, "scenario.target_qps", probe["target_qps"])
        figures = {**probe["figures"], "target_qps": probe["target_qps"], "valid": float(probe["valid"])}
        for key, value in figures.items():
            client.log_metric(run_id, key, value)
        client.set_terminated(run_id, "FINISHED")

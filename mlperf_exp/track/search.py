"""MLflow's runs by a filter, with the ``result.json`` that each holds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mlperf_exp.credentials import has_credentials, redact
from mlperf_exp.errors import UserError
from mlperf_exp.track.mirror import explain, prepare_environment
from mlperf_exp.track.tracker import absolute_uri

_PAGE = 500
_AT_A_TIME = 8


def results(filter_string: str, uri: str, experiment: str) -> Iterator[tuple[str, str | None]]:
    """(run id, text of its result.json or None) of every run of an experiment that the filter finds.

    Raises:
        UserError: MLflow cannot be reached, has no such experiment, or does not understand the filter.
    """
    if has_credentials(uri):
        raise UserError("--tracking-uri", "holds credentials", "Give them by MLFLOW_TRACKING_USERNAME and ..._PASSWORD")
    uri = absolute_uri(uri)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise UserError(
            "--tracking-uri", f"there is no {uri.removeprefix('sqlite:///')}", "Name the MLflow of the runs"
        )
    prepare_environment(uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient(uri)
        place = client.get_experiment_by_name(experiment)
        if place is None:
            raise UserError("--experiment", f"{redact(uri)} has no {experiment}", "Name the experiment of the runs")
        yield from _pages(client, place.experiment_id, filter_string)
    except MlflowException as error:
        raise UserError(
            "--mlflow", f"MLflow at {redact(uri)}: {explain(error)}", "Check the filter and the URI"
        ) from None


def _pages(client: Any, experiment_id: str, filter_string: str) -> Iterator[tuple[str, str | None]]:
    token = None
    with ThreadPoolExecutor(_AT_A_TIME) as pool:  # a server answers each in some ten milliseconds, mostly of waiting
        while True:
            found = client.search_runs([experiment_id], filter_string, max_results=_PAGE, page_token=token)
            ids = [run.info.run_id for run in found]
            yield from zip(ids, pool.map(lambda run_id: _result(client, run_id), ids), strict=True)
            token = found.token
            if not token:
                return


def _result(client: Any, run_id: str) -> str | None:
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client.download_artifacts(run_id, "result.json", folder)).read_text(encoding="utf-8")
        except (MlflowException, OSError, ValueError):
            return None

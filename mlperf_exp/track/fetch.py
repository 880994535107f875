"""A run's folder back from MLflow; runs in the caller's process, and imports mlflow in it."""

from __future__ import annotations

from pathlib import Path

from mlperf_exp.credentials import redact
from mlperf_exp.errors import UserError
from mlperf_exp.track.mirror import explain, prepare_environment
from mlperf_exp.track.tracker import absolute_uri


def fetch(run_id: str, uri: str, folder: Path) -> Path:
    """Download the files of MLflow's run ``run_id`` into ``folder``, which is made.

    Raises:
        UserError: MLflow cannot be reached, or has no such run.
    """
    uri = absolute_uri(uri)
    database = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    if uri.startswith("sqlite:///") and not database.exists():
        raise UserError("--uri", f"there is no MLflow database {database}", "Name MLflow with --uri")
    prepare_environment(uri)
    from mlflow.tracking import MlflowClient

    folder.mkdir(parents=True)
    try:
        MlflowClient(uri).download_artifacts(run_id, "", str(folder))
    except Exception as error:  # MLflow raises of its own, its stores' and its transports'
        problem = f"MLflow at {redact(uri)} does not give run {run_id}: {explain(error)}"
        raise UserError("RUN", problem, "Check the id, or name the run's folder") from None
    return folder

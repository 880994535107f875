"""One run in MLflow; the only module that imports mlflow.

Every step looks first at what MLflow already has and sends what is missing, so that it can be repeated after any outage
or kill: one MLflow run for each run id, no value twice. Metrics of the result keep their names, ``phase/...`` are the
phases' seconds, ``live/...`` come from ``live.jsonl``.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlperf_exp.credentials import redact
from mlperf_exp.files import write_json
from mlperf_exp.sweep import record
from mlperf_exp.track import content
from mlperf_exp.track.probes import Probes
from mlperf_exp.track.tracker import LIVE, RESULT, STATE, read_object

# MLflow's own defaults wait for minutes and try for hours; a value that the user has set stays.
_HTTP_TIMEOUT_S = "15"
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": _HTTP_TIMEOUT_S,
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "OMP_NUM_THREADS": "1",
}
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
MLFLOW_PARENT, PARENT_LOCK = "mlflow.parentRunId", ".mlflow_parent.lock"
_SENT = "live/completed"  # in every line of live.jsonl: its newest point says how far MLflow has the file


class Mirror:
    """One run in MLflow. Every public step may be repeated at any time; ``attempt`` runs steps and never raises."""

    def __init__(self, run_dir: Path, options: Mapping[str, Any]) -> None:
        self.run_dir, self.options = run_dir, options
        state = read_object(run_dir / STATE)
        if state.get("uri") != options["uri"]:
            state = {}  # it tells of another MLflow
        self.run_id: str | None = state.get("mlflow_run_id")
        self.ended: str | None = state.get("ended")  # the run's status, "lost" where it never told
        self._state: dict[str, Any] = {}
        self.error: str | None = None
        self._client: Any = None
        self._connected = False
        self._probes = Probes(run_dir, options["run_id"])
        self._offset = 0  # of live.jsonl: what lies before it was sent
        self._first_at: float | None = None
        self._sent_ms = 0
        self._phase: str | None = None

    def attempt(self, *steps: Callable[[], None]) -> bool:
        """Connect where that is still to do, then run ``steps``; on any error remember it and return False."""
        try:
            self._connect()
            for step in steps:
                step()
        except Exception as error:  # whatever it is, the run's folder keeps all, and the next attempt may succeed
            self.error = explain(error)
            print(f"{time.strftime('%F %T')} {self.error}", file=sys.stderr, flush=True)
        else:
            self.error = None
        with contextlib.suppress(OSError):  # a full disk: the parent sees the exit status
            self._save()
        return self.error is None

    def send_live(self) -> None:
        """Send the lines of ``live.jsonl`` that MLflow does not have."""
        for end, points, phase in self._new_lines():
            self._log(points, tags={} if phase in (None, self._phase) else {"phase": phase})
            self._offset, self._phase = end, phase
        self._probes.send(self._client, self._client.get_run(self.run_id))

    def send_result(self) -> None:
        """Send what ``result.json`` says, then the files, then the end; without one, that the run was lost."""
        result = read_object(self.run_dir / RESULT)
        status = (result.get("run") or {}).get("status", "failed") if result else "lost"
        run = self._client.get_run(self.run_id)
        tags = content.tags(result) if result else {"status": "interrupted"}
        tags = {k: v for k, v in {**tags, "phase": "end"}.items() if run.data.tags.get(k) != v}
        params = {k: v for k, v in content.params(result).items() if k not in run.data.params}
        self._log([p for p in content.points(result) if run.data.metrics.get(p.key) != p.value], params, tags)
        if not run.inputs.dataset_inputs:
            self._log_data_set(content.data_source(result))
        for path in content.files(self.run_dir, result):
            folder = None if path.parent == Path() else path.parent.as_posix()
            self._client.log_artifact(self.run_id, str(self.run_dir / path), folder)
        ended_ms = content.ended_ms(result) or int(self._last_sign_of_life() * 1000)
        self._client.set_terminated(self.run_id, _STATUS.get(status, "KILLED"), ended_ms)
        self.ended = status

    def _connect(self) -> None:
        if self._connected:
            return
        uri = self.options["uri"]
        with _one_at_a_time(uri):  # two runs must not create one new database
            self._client = _client(uri)
            experiment = self._experiment()
        own_id = str(self.options["run_id"])
        self.run_id = self._known() or self._found(experiment, own_id) or self._created(experiment)
        self._save()
        run = self._client.get_run(self.run_id)
        params = self.options.get("params", {}) | self._swept()
        self._log([], {k: v for k, v in params.items() if k not in run.data.params})
        if _SENT in run.data.metrics:
            history = self._client.get_metric_history(self.run_id, _SENT)
            self._sent_ms = max((metric.timestamp for metric in history), default=0)
        self._connected = True

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name, database = self.options["experiment"], _sqlite_path(self.options["uri"])
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            # Without a server MLflow would put artifacts below the working directory; beside the database is better.
            place = str(database.parent / "mlartifacts") if database else None
            try:
                return str(self._client.create_experiment(name, artifact_location=place))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self._client.get_experiment_by_name(name)
        return str(experiment.experiment_id)

    def _known(self) -> str | None:
        """The MLflow run that the state file names, unless that MLflow has never heard of it."""
        from mlflow.exceptions import MlflowException

        if self.run_id is None:
            return None
        try:
            run = self._client.get_run(self.run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if run.info.lifecycle_stage == "deleted":
            raise RuntimeError(
                f"run {self.run_id} was deleted there; restore it, or remove {STATE} to send the run as a new one"
            )
        return self.run_id

    def _found(self, experiment: str, run_id: str) -> str | None:
        """The MLflow run that an earlier process created and could not write down any more."""
        query = f"tags.`{content.RUN_ID_TAG}` = '{run_id}'"
        runs = self._client.search_runs([experiment], query, max_results=1)
        return runs[0].info.run_id if runs else None

    def _created(self, experiment: str) -> str:
        tags = {
            content.RUN_ID_TAG: self.options["run_id"],
            "status": "running",
            "mlflow.user": _user(),
            "mlflow.source.type": "LOCAL",
            **self.options.get("tags", {}),
        }
        name = self.options["run_name"]
        if self.options.get("sweep"):
            tags[MLFLOW_PARENT] = self._parent(experiment, Path(self.options["sweep"]))
            name = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in self._own().items()) or name
        started_ms = int(self.options["started_at"] * 1000)
        run = self._client.create_run(experiment, started_ms, tags, content.clip(name, content.MAX_KEY))
        return str(run.info.run_id)

    def _parent(self, experiment: str, sweep_dir: Path) -> str:
        """The MLflow run of the sweep that this run is a job of; made by whichever of its jobs comes first."""
        with alone_by(sweep_dir / PARENT_LOCK):
            found = self._found(experiment, sweep_dir.name)
            if found is not None:
                return found
            swept = record.read(sweep_dir)
            tags = {
                content.RUN_ID_TAG: sweep_dir.name,
                "kind": "sweep",
                "status": "running",
                "mlflow.user": _user(),
                "mlflow.source.type": "LOCAL",
                **content.clean_tags({"overrides": " ".join(swept.get("overrides") or ())}),
            }
            started_ms = int(self.options["started_at"] * 1000)
            return str(self._client.create_run(experiment, started_ms, tags, f"sweep {sweep_dir.name}").info.run_id)

    def _own(self) -> dict[str, str]:
        """The overrides by which this job differs from the others of its sweep."""
        swept = record.read(Path(self.options["sweep"])) if self.options.get("sweep") else {}
        for job in swept.get("jobs") or ():
            if job["folder"] == self.run_dir.name:
                return dict(job["own"])
        return {}

    def _swept(self) -> dict[str, str]:
        return content.flatten(self._own(), "sweep.")

    def send_counts(self, counts: Mapping[str, int]) -> None:
        """Of a sweep: how many jobs are done, failed, left, now."""
        at_ms = int(time.time() * 1000)
        self._log([content.Point(f"jobs/{k.replace(' ', '_')}", float(v), at_ms, 0) for k, v in counts.items()])

    def close_sweep(self, swept: Mapping[str, Any]) -> None:
        """Of a sweep: send its record and its end."""
        status = str(swept.get("status", "interrupted"))
        for name in (record.SWEEP, record.SEARCH):
            if (self.run_dir / name).exists():
                self._client.log_artifact(self.run_id, str(self.run_dir / name))
        self._log([], tags={"status": status, "varying": " ".join(swept.get("varying") or ())})
        self._client.set_terminated(self.run_id, _STATUS.get(status, "KILLED"))
        self.ended = status

    def _log(
        self,
        points: list[content.Point],
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        def send(**batch: Any) -> None:
            self._client.log_batch(self.run_id, **batch)

        for some in content.chunks((params or {}).items(), 100):  # MLflow's limits for one request
            send(params=[Param(*item) for item in some])
        for some in content.chunks((tags or {}).items(), 100):
            send(tags=[RunTag(*item) for item in some])
        for some in content.chunks(points, 1000):
            send(metrics=[Metric(*point) for point in some])

    def _log_data_set(self, data: content.DataSource | None) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if data is not None:
            dataset = Dataset(data.name, data.digest, "local", json.dumps({"uri": data.source}))
            inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "benchmark")])]
            self._client.log_inputs(self.run_id, inputs)

    def _new_lines(self) -> Iterator[tuple[int, list[content.Point], str | None]]:
        """Whole lines behind the offset, 50 for one transaction: the offset behind them, their points, the phase."""
        try:
            with (self.run_dir / LIVE).open("rb") as file:
                file.seek(self._offset)
                lines = file.read().splitlines(keepends=True)
        except FileNotFoundError:
            return
        end = self._offset
        for some in content.chunks((line for line in lines if line.endswith(b"\n")), 50):
            points: list[content.Point] = []
            phase = self._phase
            for line in some:
                end += len(line)
                with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that a full disk cut short
                    values = json.loads(line)
                    first_at = values["at"] if self._first_at is None else self._first_at
                    new = content.live_points(values, first_at)
                    self._first_at = first_at
                    phase = values["phase"]
                    points += (p for p in new if p.at_ms > self._sent_ms)
            yield end, points, phase

    def _last_sign_of_life(self) -> float:
        live = self.run_dir / LIVE
        return live.stat().st_mtime if live.exists() else time.time()

    def _save(self) -> None:
        state = {"uri": self.options["uri"], "mlflow_run_id": self.run_id, "ended": self.ended, "error": self.error}
        if state != self._state:
            write_json(self.run_dir / STATE, state)
            self._state = state


def explain(error: Exception) -> str:
    """One line for the user instead of a library's chain of exceptions."""
    text = redact(str(error)) or type(error).__name__
    if "Connection refused" in text:
        return "it refuses connections"
    if "timed out" in text or "Timeout" in text:
        return f"it did not answer within {os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT']} s"
    if "Failed to resolve" in text or "Name or service not known" in text:
        return "its host name is unknown"
    return content.clip(text.strip().splitlines()[0].rstrip("."), 400)


def prepare_environment(uri: str) -> None:
    """MLflow reads these at import. Nothing but the tracking server is ever contacted: no telemetry."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true", MLFLOW_TRACKING_URI=uri)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


@contextlib.contextmanager
def alone_by(lock: Path) -> Iterator[None]:
    """Hold a lock; where its folder cannot be written to, or knows no locks, nothing is held."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context(lock.open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Hold the lock beside an SQLite database, whose folder is made; nothing for a server."""
    database = _sqlite_path(uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with (database.parent / ".mlflow.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry in /etc/passwd
        return str(os.getuid())

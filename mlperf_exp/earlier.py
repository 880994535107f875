"""One accuracy run for many load points: results by engine and data set, under ``outputs/accuracy/``.

Accuracy belongs to the engine (``hashes.engine_hash``) and to the data that were read (``hashes.data_hash``); a load
parameter changes neither. After each whole accuracy test its score is kept with the checksum of LoadGen's accuracy log;
a later run takes it over where both hashes are equal, the log is still there and nothing was changed by hand.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlperf_exp import hashes
from mlperf_exp.config import AccuracyFrom, Decoder, OpenaiBackend
from mlperf_exp.files import write_json
from mlperf_exp.inputs import Inputs
from mlperf_exp.messages import Derived, Measurement, Plan, Score

INDEX = Path("outputs") / "accuracy"
LOGS = ("mlperf_log_accuracy.json", "mlperf_log_detail.txt", "accuracy.txt")


@dataclass(frozen=True, slots=True)
class Earlier:
    """An accuracy result of another run: its score, the run and its folder, and when it was measured."""

    score: Score
    run_id: str
    folder: Path
    measured_at: str
    engine_hash: str

    @property
    def facts(self) -> dict[str, str]:
        """Which run it was, as ``verdict.accuracy.reused`` in ``result.json`` has it."""
        return {
            "run_id": self.run_id,
            "folder": str(self.folder),
            "measured_at": self.measured_at,
            "engine_hash": self.engine_hash,
        }


def planned(plan: Plan, inputs: Inputs, index: Path = INDEX) -> tuple[Plan, Earlier | None, Inputs]:
    """The plan without its accuracy test where an earlier result stands in for it, and that result.

    A run of ``scenario.mode=performance`` takes any that there is; one of ``both`` only with ``accuracy=reuse``. Why an
    earlier result does not count is among the inputs' warnings.
    """
    wanted = "accuracy" not in plan.modes or plan.config.accuracy is AccuracyFrom.reuse
    if not wanted or "performance" not in plan.modes:
        return plan, None, inputs
    found, refusal = find(plan, inputs, index)
    if refusal:
        inputs = replace(inputs, warnings=(*inputs.warnings, refusal))
    if found is None or "accuracy" not in plan.modes:
        return plan, found, inputs
    why = f"accuracy=reuse: run {found.run_id} of {found.measured_at} measured it with the same engine and data"
    without = replace(
        plan, modes=("performance",), derived=(*plan.derived, Derived("scenario.mode", "performance", why))
    )
    return without, found, inputs


def taken_over(measurement: Measurement, found: Earlier | None) -> Measurement:
    """The measurement with the earlier result's score, where there is one and the run came to its end."""
    if found is None or measurement.failure or measurement.score is not None:
        return measurement
    metrics = measurement.metrics | found.score.metrics
    return replace(measurement, metrics=metrics, score=found.score, accuracy_from=found.facts)


def keep(plan: Plan, inputs: Inputs, measurement: Measurement, run_id: str, index: Path = INDEX) -> Path | None:
    """Keep a whole accuracy test's score for later runs; the file's path, None where there is nothing to keep.

    Raises:
        OSError: the index cannot be written.
    """
    score = measurement.score
    test = next((test for test in measurement.tests if test.mode == "accuracy"), None)
    whole = score is not None and test is not None and score.samples == len(inputs.samples)
    if not whole or measurement.failure or test is None or score is None or test.errors or not _can_know(plan):
        return None
    if "power_end" not in test.loadgen or any(key.startswith("error_") for key in test.loadgen):
        return None  # cut short, or with errors; LoadGen does not count them in this mode
    record: dict[str, Any] = {
        "schema": 1,
        "engine_hash": hashes.engine_hash(plan, inputs),
        "data_hash": hashes.data_hash(inputs.samples),
        "run_id": run_id,
        "folder": str(test.log_dir),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "score": asdict(score),
        "sha256": {name: _sha256(test.log_dir / name) for name in LOGS},
    }
    record["checksum"] = _checksum(record)
    index.mkdir(parents=True, exist_ok=True)
    path = _path(index, record["engine_hash"], record["data_hash"])
    write_json(path, record)
    return path


def find(plan: Plan, inputs: Inputs, index: Path = INDEX) -> tuple[Earlier | None, str | None]:
    """An earlier result of the same engine on the same data, or one sentence why the one that is there does not count.

    Both are None where there is none.
    """
    if not _can_know(plan):
        return None, None
    engine = hashes.engine_hash(plan, inputs)
    if not any(index.glob(f"{engine}-*.json")):  # before all samples are hashed
        return None, None
    path = _path(index, engine, hashes.data_hash(inputs.samples))
    if not path.exists():
        return None, None
    try:
        record = json.loads(path.read_text())
        if record["checksum"] != _checksum(record):
            return None, _refused(path, "it was changed after it was written")
        folder = Path(record["folder"])
        score = record["score"]
        earlier = Earlier(
            Score(dict(score["metrics"]), int(score["samples"]), tuple(score["notes"])),
            str(record["run_id"]),
            folder,
            str(record["measured_at"]),
            str(record["engine_hash"]),
        )
        for name, digest in record["sha256"].items():
            if not (folder / name).exists():
                return None, _refused(path, f"{folder / name} is gone")
            if _sha256(folder / name) != digest:
                return None, _refused(path, f"{folder / name} was changed after it was scored")
    except (OSError, ValueError, KeyError, TypeError):
        return None, _refused(path, "it cannot be read")
    return earlier, None


def _refused(path: Path, why: str) -> str:
    return f"The earlier accuracy result {path} does not count: {why}; measure it again with scenario.mode=both."


def _can_know(plan: Plan) -> bool:
    """What servers of others run may change from run to run without anybody here knowing."""
    return isinstance(plan.config.model, Decoder) and not isinstance(plan.config.backend, OpenaiBackend)


def _path(index: Path, engine: str, data: str) -> Path:
    return index / f"{engine}-{data}.json"


def _checksum(record: dict[str, Any]) -> str:
    rest = {key: value for key, value in record.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

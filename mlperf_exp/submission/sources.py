"""Reads finished runs for a submission, and verifies that their logs are whole and those that the runs wrote.

Everything wrong with a run is told in one line that begins with its folder; nothing is written here.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlperf_exp.compliance.logs import read_answers
from mlperf_exp.errors import RunFailed, UserError
from mlperf_exp.measure import read_detail_log
from mlperf_exp.submission.rules import LOADGEN_NAMES, SEEDS, checked_as, result_folder

_KEY = "RUN"
_AGAIN = "Run it again, or name another run"
LOGS = ("mlperf_log_summary.txt", "mlperf_log_detail.txt", "mlperf_log_accuracy.json")


@dataclass(frozen=True, slots=True)
class Source:
    """One run: its folder, its record, and what it is in MLPerf's words.

    ``benchmark`` is the checker's name of the rules that apply, ``model`` the name of the results' folder.
    """

    folder: Path
    result: dict[str, Any]
    benchmark: str
    model: str
    scenario: str
    division: str
    engine_hash: str

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        value: dict[str, Any] = self.result["plan"]["config"]
        return value

    @property
    def name(self) -> str:
        """How messages name the run."""
        return f"{self.folder}"

    def has(self, test: str) -> bool:
        """Whether ``performance``, ``accuracy`` or ``compliance/TEST06`` is there."""
        return (self.folder / test).is_dir()


def load(folder: Path) -> Source:
    """Read one run and verify it.

    Raises:
        UserError: it is no finished run, cannot be read, or its files are not those that it wrote.
    """
    try:
        return _load(folder)
    except PermissionError as error:
        problem = f"{error.filename} cannot be read: {error.strerror}"
        raise UserError(_KEY, problem, "Make the run's folder readable for you") from None


def _load(folder: Path) -> Source:
    if folder.is_dir():
        next(folder.iterdir(), None)  # a folder without rights says so here
    path = folder / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        run, config = result["run"], result["plan"]["config"]
        benchmark = config["model"]["benchmark"]
        scenario, division = config["scenario"]["name"], config["division"]
        artifacts = {str(item["path"]): str(item["sha256"]) for item in result["artifacts"]}
    except FileNotFoundError:
        raise UserError(_KEY, f"{folder} is not the folder of a finished run: it has no result.json", _AGAIN) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(_KEY, f"{path} is cut short or no record of a run ({error})", _AGAIN) from None
    if run.get("foreign"):
        raise UserError(_KEY, f"{folder} was imported from {run['foreign']}, and LoadGen did not run it", _AGAIN)
    if run.get("status") != "finished":
        raise UserError(_KEY, f"{folder} has {run.get('status')}: {run.get('error')}", _AGAIN)
    if not run.get("engine_hash"):
        raise UserError(_KEY, f"{folder} does not say which engine it used (run.engine_hash)", _AGAIN)
    if benchmark not in LOADGEN_NAMES:
        raise UserError(_KEY, f"{folder} ran {config['model']['name']}, which is no MLPerf benchmark", _AGAIN)
    checked = checked_as(benchmark, (config["model"].get("target") or {}).get("minimum") or {})
    model = str(config["model"]["name"])
    source = Source(
        folder=folder,
        result=result,
        benchmark=checked,
        model=result_folder(model, checked),
        scenario=_scenario(scenario),
        division=str(division),
        engine_hash=str(run["engine_hash"]),
    )
    _verify_files(folder, artifacts)
    for test in ("performance", "accuracy"):
        if source.has(test):
            _verify_logs(folder / test)
    if source.has("accuracy"):
        _verify_answers(folder / "accuracy")
    return source


def _scenario(name: str) -> str:
    """The results' folder: ``single_stream`` or ``SingleStream`` alike."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _verify_files(folder: Path, artifacts: dict[str, str]) -> None:
    """The files under the tests' folders are those that the run listed, unchanged and inside the folder."""
    for relative, digest in artifacts.items():
        if relative.split("/")[0] not in ("performance", "accuracy", "compliance"):
            continue
        path = folder / relative
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(_KEY, f"{folder}: {relative} leads out of the run's folder", "Use the run's own files")
        if not path.is_file():
            raise UserError(_KEY, f"{folder}: {relative} is missing, which the run wrote", _AGAIN)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            problem = f"{folder}: {relative} was changed after the run: its SHA-256 is not the one in result.json"
            raise UserError(_KEY, problem, _AGAIN)
    for test in ("performance", "accuracy"):
        for name in LOGS if (folder / test).is_dir() else ():
            if f"{test}/{name}" not in artifacts:
                raise UserError(_KEY, f"{folder}: result.json does not list {test}/{name}", _AGAIN)


def _verify_logs(folder: Path) -> None:
    """LoadGen came to its end, in this round."""
    detail = folder / "mlperf_log_detail.txt"
    logged = read_detail_log(folder)
    if not complete(detail, logged):
        raise UserError(_KEY, f"{detail} is cut short: LoadGen's end is missing", _AGAIN)
    for name, seed in SEEDS.items():
        if logged.get(f"effective_{name}") != seed:
            problem = f"{detail} is of another round: {name} is {logged.get(f'effective_{name}')} and not {seed}"
            raise UserError(_KEY, problem, "Run it again with this round's LoadGen")


def complete(detail: Path, logged: dict[str, Any]) -> bool:
    """Whether a detail log is whole: a performance test ends with the count of errors, an accuracy test with its time.

    The last line must be whole too, for a cut may fall inside it.
    """
    with detail.open("rb") as file:
        file.seek(max(0, detail.stat().st_size - 4096))
        last = file.read().rstrip().rsplit(b"\n", 1)[-1]
    end = "num_errors" if logged.get("effective_test_mode") == "PerformanceOnly" else "power_end"
    return end in logged and last.endswith(b"}")


def _verify_answers(folder: Path) -> None:
    """The accuracy log's answers are as long as the rows of ``queries.parquet`` say."""
    import pyarrow.parquet as pq

    log = folder / "mlperf_log_accuracy.json"
    try:
        answers = read_answers(log)
    except RunFailed as error:
        raise UserError(_KEY, str(error), _AGAIN) from None
    if not (folder / "queries.parquet").is_file():
        raise UserError(_KEY, f"{folder / 'queries.parquet'} is missing", _AGAIN)
    table = pq.read_table(folder / "queries.parquet", columns=["index", "tokens"]).to_pydict()
    tokens = dict(zip(table["index"], table["tokens"], strict=True))
    if len(answers) != len(table["index"]):
        problem = f"{log} has {len(answers):,} answers, and queries.parquet {len(table['index']):,} queries"
        raise UserError(_KEY, problem, _AGAIN)
    for answer in answers:
        count = answer.token_count  # None: the benchmark's answers are no tokens
        good = count is None or (count == tokens.get(answer.qsl_idx) and len(answer.data) == 8 * count)
        if answer.qsl_idx not in tokens or not good:
            problem = f"{log}: the answer to sample {answer.qsl_idx} is not the one in queries.parquet"
            raise UserError(_KEY, problem, _AGAIN)

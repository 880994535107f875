"""``result.json`` -> what is shown of it, the same on the page, in Markdown and on the terminal.

Nothing here trusts its input: any key may be absent, null or of another type, because a run may have died at any
point. What is missing becomes a sentence, never an exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mlperf_exp.accuracy import FIGURES
from mlperf_exp.benchmarks import MIN_DURATION_S
from mlperf_exp.report.text import MISSING, duration, figure, number, plain

PHASES = {
    "prepare_s": "Preparation",
    "start_s": "Start of the system",
    "warmup_s": "Warm-up",
    "load_s": "Load",
    "drain_s": "Drain",
    "accuracy_s": "Accuracy test",
    "stop_s": "Stop of the system",
    "score_s": "Scoring",
    "track_s": "Tracking",
}
TRAINING_PHASES = {
    "prepare_s": "Preparation",
    "init_s": "Initialization",
    "train_s": "Training",
    "evaluate_s": "Evaluation",
    "stop_s": "Stop of the processes",
    "check_s": "Check of MLPerf's log",
    "track_s": "Tracking",
}
BETWEEN = "Between phases"  # the part of the wall time that no phase accounts for
_ENTRIES = 200  # rows shown of lists whose length the run does not bound
_SHOWN_OF_A_LIST = 16  # LoadGen logs the index of every sample that it loaded


class Mark(Enum):
    """Whether a figure keeps its bound; a glyph and a word, so that no colour is needed."""

    passed = "✓ pass"
    failed = "✗ fail"
    none = "–"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure beside its bound, all as text with units."""

    name: str
    value: str
    bound: str = "no bound"
    mark: Mark = Mark.none


@dataclass(frozen=True, slots=True)
class Judgement:
    """The head of the page. ``tone`` is good, bad or neutral."""

    label: str
    summary: str
    tone: str
    glyph: str
    short: str | None
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Honest:
    """MLPerf's figure and the one over the whole wall time, and how long the full data set would take."""

    mlperf: str
    wall: str
    share: str
    basis: str
    projection: str
    of: str = "Over the performance test alone."


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The accuracy beside its targets; ``state`` is one sentence."""

    state: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class View:
    """All of a run's result that a reader is shown, in the order of the page."""

    title: str
    facts: tuple[tuple[str, str], ...]
    judgement: Judgement
    key_figures: tuple[Row, ...]
    honest: Honest
    accuracy: Accuracy
    percentiles: tuple[tuple[str, ...], ...]
    phases: tuple[tuple[str, float], ...]
    phases_missing: str
    total_s: float | None
    tests: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    derived: tuple[tuple[str, str, str], ...]
    engine: tuple[tuple[str, str], ...]
    command: str
    environment: tuple[tuple[str, str], ...]
    packages: tuple[tuple[str, str], ...]
    compliance: tuple[tuple[str, str], ...]
    artifacts: tuple[tuple[str, float | None, str], ...]
    trains: bool = False  # a training, which has no queries, no latencies and no LoadGen


def part(value: Any, *keys: str) -> dict[str, Any]:
    """The mapping under ``keys``, empty where anything on the way is missing or no mapping."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return dict(value) if isinstance(value, Mapping) else {}


def items(value: Any) -> list[Any]:
    """``value`` as a list; empty where it is none. A lone text is a list of one."""
    if isinstance(value, str):
        return [value]
    return list(value) if isinstance(value, list | tuple) else []


def at_most(value: Any, bound: Any) -> Mark:
    """Whether ``value`` keeps an upper bound; no mark where one of them is missing."""
    x, y = number(value), number(bound)
    if x is None or y is None:
        return Mark.none
    return Mark.passed if x <= y else Mark.failed


def build(result: Mapping[str, Any]) -> View:
    """Everything that is shown of ``result``."""
    run, config = part(result, "run"), part(result, "plan", "config")
    environment = part(result, "environment")
    packages = part(environment, "packages")
    trains = trained(result)
    names = TRAINING_PHASES if trains else PHASES
    phases, total = _phases(result, names), number(part(result, "phases").get("total_s"))
    return View(
        title=plain(run.get("name") or run.get("id") or "Run without a name", 200),
        facts=_facts(run, config, total),
        judgement=_judgement(result),
        key_figures=_training_figures(result) if trains else _key_figures(result),
        honest=_training_time(result) if trains else _honest(result),
        accuracy=_accuracy(result),
        percentiles=_percentiles(part(result, "metrics")),
        phases=phases,
        phases_missing=", ".join(name.lower() for name in names.values() if name not in dict(phases)),
        total_s=total,
        tests=_tests(result),
        derived=tuple(
            (_value(d.get("key", "?")), _value(d.get("value")), _value(d.get("why", "")))
            for d in items(part(result, "plan").get("derived"))
            if isinstance(d, Mapping)
        ),
        engine=_pairs(part(result, "plan", "engine")),
        command=plain(" ".join(str(word) for word in items(run.get("command")))),
        environment=_pairs({k: v for k, v in environment.items() if k != "packages"}),
        packages=_pairs(packages),
        compliance=_pairs(part(result, "verdict", "compliance")),
        artifacts=tuple(
            (plain(a.get("path", "?"), 500), number(a.get("bytes")), plain(a.get("sha256") or "", 64))
            for a in items(result.get("artifacts"))
            if isinstance(a, Mapping)
        ),
        trains=trains,
    )


def trained(result: Mapping[str, Any]) -> bool:
    """Whether the run was a training."""
    return part(result, "plan", "config", "scenario").get("name") == "train"


def _value(value: Any) -> str:
    """A configuration value as YAML would show it on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple | Mapping):
        if isinstance(value, Mapping):
            shown = [f"{plain(k, 200)}: {_value(v)}" for k, v in list(value.items())[:_SHOWN_OF_A_LIST]]
        else:
            shown = [_value(v) for v in value[:_SHOWN_OF_A_LIST]]
        more = f", … ({len(value):,} in all)" if len(value) > _SHOWN_OF_A_LIST else ""
        return plain(", ".join(shown) + more) if shown else "none"
    return plain(value)


def _pairs(mapping: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((plain(k, 200), _value(v)) for k, v in list(mapping.items())[:_ENTRIES])


def _facts(run: Mapping[str, Any], config: Mapping[str, Any], total: float | None) -> tuple[tuple[str, str], ...]:
    groups = {"Model": "model", "Data set": "dataset", "Hardware": "hw", "Scenario": "scenario", "Backend": "backend"}
    named = ((key, part(config, group).get("name")) for key, group in groups.items())
    facts = [*named, ("Division", config.get("division")), ("Seed", config.get("seed")), ("Run", run.get("id")),
             ("Started", run.get("started_at")), ("Ended", run.get("ended_at"))]  # fmt: skip
    if total is not None:
        facts.append(("Wall time", duration(total)))
    return tuple((key, plain(value, 200)) for key, value in facts if value not in (None, ""))


def _judgement(result: Mapping[str, Any]) -> Judgement:
    run, verdict = part(result, "run"), part(result, "verdict")
    status = run.get("status")
    reasons = [plain(r) for r in items(verdict.get("reasons"))]
    error = plain(run["error"]) if run.get("error") else None
    if status == "finished" and verdict:
        valid = verdict.get("valid") is True
        label, tone, glyph = ("VALID", "good", "✓") if valid else ("INVALID", "bad", "✗")
        summary = "The run keeps MLPerf's rules." if valid else "The run finished; by MLPerf's rules it does not count."
        if not valid and not reasons:
            reasons = ["The verdict names no reason."]
    else:
        label, tone, glyph = "NOT JUDGED", "neutral", "!"
        summary = {
            "failed": "The run failed. What it had finished until then is below.",
            "interrupted": "The run was interrupted. What it had finished until then is below.",
            "finished": "The run finished, and its result holds no verdict.",
        }.get(str(status), "The run left no result: it ended before one could be written, or it is still going on.")
    if error is not None and not any(error in reason for reason in reasons):
        reasons.insert(0, error)
    configured = number(part(result, "plan", "config", "scenario").get("min_duration_s"))
    short = None
    if configured is not None and configured < MIN_DURATION_S:
        short = f"Short run: set to {duration(configured)} of load, MLPerf asks for {duration(MIN_DURATION_S)}"
    warnings = dict.fromkeys(
        plain(w) for w in [*items(verdict.get("warnings")), *items(part(result, "plan").get("warnings"))]
    )
    return Judgement(label, summary, tone, glyph, short, tuple(reasons[:_ENTRIES]), tuple(warnings)[:_ENTRIES])


def _key_figures(result: Mapping[str, Any]) -> tuple[Row, ...]:
    metrics, rules = part(result, "metrics"), part(result, "plan", "config", "scenario")
    percentile = f"p{(number(rules.get('latency_percentile')) or 99.0):g}"
    tokens = _gives_tokens(result)
    rows = []
    for name, key in (("TTFT", "ttft"), ("TPOT", "tpot"), ("Latency", "latency")):
        value, bound = metrics.get(f"{key}_{percentile}_ms"), rules.get(f"{key}_ms")
        if key != "latency" and not tokens and number(value) is None:
            continue  # the system answers without tokens
        shown = "no bound" if number(bound) is None else f"≤ {figure(bound, 'ms')}"
        rows.append(Row(f"{name} {percentile}", figure(value, "ms"), shown, at_most(value, bound)))
    estimate = metrics.get("early_stopping_latency_ms")
    if number(estimate) is not None:
        rows.append(Row(f"MLPerf's estimate of {percentile}", figure(estimate, "ms")))
    rate = number(metrics.get("target_qps"))
    offered = "no bound" if rate is None else f"target rate {figure(rate, 'queries/s')}"
    rows.append(Row("Samples per second", figure(metrics.get("samples_per_second"), "samples/s"), offered))
    if tokens:
        rows.append(Row("Tokens per second", figure(metrics.get("tokens_per_second"), "tokens/s")))
    queries = number(metrics.get("queries", part(result, "tests", "performance").get("completed")))
    together = number(part(result, "tests", "performance", "loadgen").get("effective_samples_per_query"))
    if rules.get("name") == "multi_stream" and queries is not None and together:
        rows.append(Row(f"Queries of {together:.0f} samples", figure(queries / together)))
    else:
        rows.append(Row("Queries", figure(queries)))
    errors = metrics.get("errors", part(result, "tests", "performance").get("errors"))
    rows.append(Row("Errors", figure(errors), "none allowed", at_most(errors, 0)))
    return tuple(rows)


def _training_figures(result: Mapping[str, Any]) -> tuple[Row, ...]:
    metrics, record = part(result, "metrics"), part(result, "training")
    ranks = number(record.get("ranks"))
    rows = [
        Row("Samples per second", figure(metrics.get("train_samples_per_second"), "samples/s")),
        Row("Tokens per second", figure(metrics.get("train_tokens_per_second"), "tokens/s")),
        Row("Of a process", figure(metrics.get("train_samples_per_second_per_process"), "samples/s")),
        Row("Processes", figure(ranks)),
        Row("Epochs", figure(metrics.get("epochs"))),
        Row("Time to the target", figure(metrics.get("time_to_train_minutes"), "min")),
        Row("Waiting for data", figure(metrics.get("data_wait_percent"), "%")),
    ]
    mfu = number(metrics.get("model_flops_utilization_percent"))
    if mfu is not None:
        rows.append(Row("Model FLOP/s utilization", figure(mfu, "%"), f"≤ {figure(100.0, '%')}", at_most(mfu, 100.0)))
    absent = {"Processes"} if ranks is None else set()
    absent |= {"Tokens per second"} if "train_tokens_per_second" not in metrics else set()
    return tuple(row for row in rows if row.name not in absent)


def _training_time(result: Mapping[str, Any]) -> Honest:
    metrics, phases = part(result, "metrics"), part(result, "phases")
    run, total = number(metrics.get("run_s")), number(phases.get("total_s"))
    epoch = number(metrics.get("epoch_s"))
    return Honest(
        mlperf=duration(run),
        wall=duration(total),
        share=f"MLPerf's figure is {100 * run / total:.0f} % of it" if run is not None and total else "",
        basis="From the start of the process to the end of tracking, initialization included.",
        projection=f"An epoch takes {duration(epoch)} without evaluation." if epoch is not None else "",
        of="From run_start to run_stop in MLPerf's log, evaluation included.",
    )


def _gives_tokens(result: Mapping[str, Any]) -> bool:
    """Whether the model answers token by token; where the result does not say it, yes."""
    model = part(result, "plan", "config", "model")
    measured = number(part(result, "metrics").get("tokens_per_second"))
    return measured is not None or not model or "max_new_tokens" in model


def _honest(result: Mapping[str, Any]) -> Honest:
    metrics = part(result, "metrics")
    mlperf, wall = number(metrics.get("samples_per_second")), number(metrics.get("wall_samples_per_second"))
    hours, samples = number(metrics.get("full_dataset_hours")), number(metrics.get("full_dataset_samples"))
    projection = "The time for the full data set is not known: it was not measured."
    if hours is not None:
        whole = "MLPerf's full data set" if samples is None else f"The full data set of {samples:,.0f} samples"
        projection = f"{whole} would take {duration(hours * 3600)} at this rate, the run's overhead included."
    total = number(part(result, "phases").get("total_s"))
    basis = "It needs a finished performance test."
    if wall is not None:
        over = "the whole run" if total is None else f"{duration(total)}, the whole run"
        basis = f"The same samples over {over} from its start to its end."
        shared = number(part(result, "run").get("engine_start_s"))
        if number(metrics.get("own_wall_samples_per_second")) is not None and shared is not None:
            started_by = plain(part(result, "run").get("engine_started_by"))
            basis = (
                f"{basis[:-1]}, and the {duration(shared)} in which run {started_by} had started the engine that this "
                "run found running."
            )
    return Honest(
        mlperf=figure(mlperf, "samples/s"),
        wall=figure(wall, "samples/s"),
        share=f"{100 * wall / mlperf:.0f} % of MLPerf's figure" if mlperf and wall is not None else "",
        basis=basis,
        projection=projection,
    )


def _accuracy(result: Mapping[str, Any]) -> Accuracy:
    metrics, verdict = part(result, "metrics"), part(result, "verdict", "accuracy")
    target = {**part(result, "plan", "config", "model", "target"), **part(verdict, "targets")}
    least, most = part(target, "minimum"), part(target, "maximum")
    notes = tuple(plain(note) for note in items(verdict.get("notes")))
    shown = [key for key in FIGURES if number(metrics.get(key)) is not None or key in least or key in most]
    if verdict.get("measured") is not True and not any(number(metrics.get(key)) is not None for key in shown):
        return Accuracy("No accuracy was measured; a run without it is never called valid.", (), notes)
    rows = [
        _target(FIGURES[key].label, metrics.get(key), least.get(key), most.get(key), FIGURES[key].form) for key in shown
    ]
    count = target.get("samples")
    rows.append(_target("Samples scored", verdict.get("samples", metrics.get("gen_num")), count, count, ",.0f"))
    passed = verdict.get("passed")
    if isinstance(passed, bool):
        state = f"The accuracy {'reaches' if passed else 'does not reach'} its targets."
    else:
        state = "The accuracy was measured; there is no target that it was held against."
    return Accuracy(state, tuple(rows), notes)


def _target(name: str, measured: Any, lowest: Any, highest: Any, form: str) -> Row:
    """A figure beside the range that it has to lie in; either end may be open (None)."""
    value, low, high = number(measured), number(lowest), number(highest)
    if low is None and high is None:
        bound = "no target"
    elif low == high:
        bound = f"{low:,.10g}"
    elif low is not None and high is not None:
        bound = f"{low:,.10g} to {high:,.10g}"
    else:
        bound = f"≤ {high:,.10g}" if low is None else f"≥ {low:,.10g}"  # all digits: they decide
    mark = Mark.none
    if value is not None and bound != "no target":
        inside = (low is None or value >= low) and (high is None or value <= high)
        mark = Mark.passed if inside else Mark.failed
    return Row(name, MISSING if value is None else f"{value:{form}}", bound, mark)


def _percentiles(metrics: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    rows = []
    for name, key in (("TTFT", "ttft"), ("TPOT", "tpot"), ("Latency", "latency")):
        values = [metrics.get(f"{key}_{column}_ms") for column in ("mean", "p50", "p90", "p99", "p999")]
        if any(number(v) is not None for v in values):
            rows.append((f"{name} (ms)", *("–" if number(v) is None else figure(v) for v in values)))
    return tuple(rows)


def _phases(result: Mapping[str, Any], names: Mapping[str, str]) -> tuple[tuple[str, float], ...]:
    phases = part(result, "phases")
    seconds = ((name, number(phases.get(key))) for key, name in names.items())
    rows = [(name, value) for name, value in seconds if value is not None and value >= 0]
    total = number(phases.get("total_s"))
    rest = 0.0 if total is None else total - sum(value for _, value in rows)
    if rows and total is not None and rest > 0.01 * total:
        rows.append((BETWEEN, rest))
    return tuple(rows)


def _tests(result: Mapping[str, Any]) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    shown = []
    for mode, test in list(part(result, "tests").items())[:10]:
        facts = part(test)
        log = part(facts, "loadgen")
        rows = [
            ("Queries sent", figure(facts.get("issued"))),
            ("Queries completed", figure(facts.get("completed"))),
            ("Errors", figure(facts.get("errors"))),
            ("First error", plain(facts.get("first_error") or "none")),
            ("Wall time", duration(facts.get("wall_s"))),
            ("LoadGen's result", _value(log.get("result_validity", "none: LoadGen did not come to its end"))),
        ]
        shown.append((plain(mode, 100), (*rows, *_pairs(log))))
    return tuple(shown)

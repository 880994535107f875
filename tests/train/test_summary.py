"""The result of several runs, held to MLCommons' own summarizer; and the package of five."""

import json
import math

import pytest
from mlperf_logging.result_summarizer import result_summarizer as real

from mlperf_exp.errors import UserError
from mlperf_exp.train import summary


def write(folder, seed, minutes, reached=True, **config):
    (folder / "train").mkdir(parents=True)
    events = [
        ("submission_benchmark", "resnet", 0, {}),
        ("seed", seed, 0, {}),
        ("run_start", None, 1000, {}),
        ("run_stop", None, 1000 + round(minutes * 60_000), {"status": "success" if reached else "aborted"}),
    ]
    lines = [
        ":::MLLOG " + json.dumps({"namespace": "", "time_ms": at, "event_type": "POINT_IN_TIME", "key": key,
                                  "value": value, "metadata": {"file": "a.py", "lineno": 1, **more}})
        for key, value, at, more in events
    ]  # fmt: skip
    (folder / "train" / "result_0.txt").write_text("\n".join(lines) + "\n")
    record = {"plan": {"config": {"seed": seed, "scenario": {"base_lr": 1.0}, **config}}}
    (folder / "result.json").write_text(json.dumps(record))
    return folder


MINUTES = [12.5, 11.25, 13.75, 12.0, 11.9]


def folders(tmp_path, minutes=MINUTES, reached=(True,) * 5, **config):
    return [
        write(tmp_path / str(i), i + 1, m, r, **config) for i, (m, r) in enumerate(zip(minutes, reached, strict=True))
    ]


def test_the_mean_without_fastest_and_slowest_is_the_real_summarizer_s(tmp_path):
    it = summary.summarize(folders(tmp_path))
    assert it.minutes == pytest.approx(real._compute_olympic_average([run.minutes for run in it.runs], 0, 1))
    assert it.counted == (11.9, 12.0, 12.5)


def test_one_run_that_missed_is_the_slowest_as_the_real_summarizer_has_it(tmp_path):
    it = summary.summarize(folders(tmp_path, reached=(True, True, False, True, True)))
    left = [run.minutes for run in it.runs if not math.isinf(run.minutes)]
    assert it.minutes == pytest.approx(real._compute_olympic_average(left, 1, 1))


def test_a_run_s_time_is_the_real_summarizer_s(tmp_path):
    from mlperf_logging.compliance_checker.mlp_parser import parse_file

    (folder,) = folders(tmp_path, [7.123], (True,))
    lines, failed = parse_file(str(folder / "train" / "result_0.txt"), ruleset="4.0.0")
    assert not failed
    assert summary.timed(folder).minutes == pytest.approx(real._query_mlperf_strong_scaling_score(lines))


@pytest.mark.parametrize(
    ("minutes", "reached", "says"),
    [
        (MINUTES[:4], (True,) * 4, "4 runs, and 5 make a result"),
        (MINUTES, (False, False, True, True, True), "2 runs did not reach the target"),
    ],
)
def test_too_few_runs_make_no_result(tmp_path, minutes, reached, says, capsys):
    made = folders(tmp_path, minutes, reached)
    assert says in summary.summarize(made).problem
    assert summary.main([str(folder) for folder in made]) == 3
    assert "No result" in capsys.readouterr().out


def test_a_sweep_s_folder_stands_for_its_jobs(tmp_path, capsys):
    folders(tmp_path)
    assert summary.main([str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["runs"]) == 5
    assert said["minutes"] == pytest.approx((11.9 + 12.0 + 12.5) / 3)


def test_runs_of_different_experiments_are_refused_by_the_key(tmp_path):
    made = [*folders(tmp_path / "a"), write(tmp_path / "b", 9, 12.0, scenario={"base_lr": 2.0})]
    with pytest.raises(UserError, match=r"they differ in scenario\.base_lr"):
        summary.summarize(made)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no folder of a training run"):
        summary.summarize([tmp_path])

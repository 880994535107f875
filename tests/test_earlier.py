"""Accuracy of an earlier run: taken over for the same engine and data, void after any change of them or the files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from mlperf_exp import cli, earlier
from mlperf_exp.inputs import Inputs
from mlperf_exp.judge import judge
from mlperf_exp.messages import Measurement, Plan, Sample, Score
from mlperf_exp.messages import Test as LoadgenTest
from mlperf_exp.plan import make_plan

SAMPLES = [Sample((1, 2, 3), "one"), Sample((4,), "two")]
INPUTS = Inputs(None, SAMPLES, None, [3, 1])
SCORE = Score({"rouge1": 38.8, "gen_len": 8_000_000.0}, 2, ("a note",))
WORDS = ("hw=a100", "backend=vllm", "scenario=server")  # a profile whose loads share an engine


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        yield


def plan(*words: str) -> Plan:
    return make_plan(compose("config", [*WORDS, *words]), Path("run"))


def measured(folder: Path, errors: int = 0, score: Score | None = SCORE) -> Measurement:
    folder.mkdir(exist_ok=True, parents=True)
    for name in earlier.LOGS:
        (folder / name).write_text(f"{name}\n")
    test = LoadgenTest(
        "accuracy",
        folder,
        {"power_end": "now"} | ({"error_runtime": ["late"]} if errors else {}),
        2,
        2 - errors,
        errors,
        None,
        1.0,
    )
    return Measurement({}, {}, (test,), score=score)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    kept = earlier.keep(plan(), INPUTS, measured(tmp_path / "accuracy"), "first", tmp_path / "index")
    assert kept is not None
    return tmp_path / "index"


def test_other_loads_take_it_over(index: Path) -> None:
    for words in (["scenario=interactive"], ["scenario=offline"], ["scenario.target_qps=7"], ["search=max_qps"]):
        found, refusal = earlier.find(plan(*words), INPUTS, index)
        assert refusal is None
        assert found is not None
        assert (found.score, found.run_id) == (SCORE, "first")


@pytest.mark.parametrize(
    "word", ["backend.engine.quantization=fp8", "backend.engine.max_num_seqs=8", "model.dtype=float16", "hw=h100",
             "model.max_new_tokens=64", "seed=2"]
)  # fmt: skip
def test_any_change_of_the_engine_makes_it_void(index: Path, word: str) -> None:
    assert earlier.find(plan(word), INPUTS, index) == (None, None)


def test_other_data_make_it_void(index: Path) -> None:
    for samples in (SAMPLES[:1], [SAMPLES[0], Sample((4,), "three")], [SAMPLES[0], Sample((5,), "two")]):
        assert earlier.find(plan(), replace(INPUTS, samples=samples), index) == (None, None)


@pytest.mark.parametrize("name", earlier.LOGS)
def test_edited_and_lost_logs_are_refused(index: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "accuracy" / name
    path.write_text(f"{name} \n")
    found, refusal = earlier.find(plan(), INPUTS, index)
    assert found is None
    assert refusal is not None
    assert f"{path} was changed after it was scored" in refusal
    path.unlink()
    assert f"{path} is gone" in str(earlier.find(plan(), INPUTS, index)[1])


def test_an_edited_or_truncated_record_is_refused(index: Path) -> None:
    (path,) = index.iterdir()
    text = path.read_text()
    path.write_text(text.replace("38.8", "39.8"))
    assert "it was changed after it was written" in str(earlier.find(plan(), INPUTS, index)[1])
    for broken in (text[: len(text) // 2], "[]", "{}"):
        path.write_text(broken)
        assert "it cannot be read" in str(earlier.find(plan(), INPUTS, index)[1])
    path.write_text(json.dumps(json.loads(text), indent=1))  # another layout, the same content
    assert earlier.find(plan(), INPUTS, index)[0] is not None


def test_what_is_not_whole_is_not_kept(tmp_path: Path) -> None:
    broken = [measured(tmp_path / "a", errors=1), measured(tmp_path / "b", score=None),
              measured(tmp_path / "c", score=replace(SCORE, samples=1)),
              replace(measured(tmp_path / "d"), failure="the engine died")]  # fmt: skip
    for measurement in broken:
        assert earlier.keep(plan(), INPUTS, measurement, "x", tmp_path / "index") is None
    assert not (tmp_path / "index").exists()


def test_servers_of_others_are_never_known(index: Path) -> None:
    words = ("backend=openai", "backend.urls=[http://a:1]")
    assert earlier.find(
        make_plan(compose("config", ["hw=h100", "scenario=server", *words]), Path("run")), INPUTS, index
    ) == (None, None)


def test_both_measures_unless_told_to_reuse(index: Path) -> None:
    both, _, _ = earlier.planned(plan(), INPUTS, index)
    assert both.modes == ("performance", "accuracy")
    reused, found, _ = earlier.planned(plan("accuracy=reuse"), INPUTS, index)
    assert reused.modes == ("performance",)
    assert found is not None
    nothing, found, _ = earlier.planned(plan("accuracy=reuse", "seed=2"), INPUTS, index)
    assert nothing.modes == ("performance", "accuracy")
    assert found is None
    _, found, _ = earlier.planned(plan("scenario.mode=performance"), INPUTS, index)
    assert found is not None


def test_the_verdict_says_whose_accuracy_it_is(index: Path, tmp_path: Path) -> None:
    it, found, _ = earlier.planned(plan("scenario.mode=performance"), INPUTS, index)
    taken = earlier.taken_over(Measurement({}, {}), found)
    verdict = judge(it, taken)
    assert verdict.accuracy["reused"]["run_id"] == "first"
    assert taken.metrics["rouge1"] == 38.8
    assert any("Accuracy was taken over from run first of 20" in warning for warning in verdict.warnings)
    assert not any("Accuracy was not measured" in reason for reason in verdict.reasons)
    failed = earlier.taken_over(Measurement({}, {}, failure="gone"), found)
    assert failed.score is None

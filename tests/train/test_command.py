"""``python -m mlperf_exp ... scenario=train`` as a user starts it: its record, its page, and what goes wrong."""

import json
import shutil

import pytest

from tests.train.few import few_digits, run

pytestmark = pytest.mark.timeout(900)  # several starts of PyTorch, on a machine that may be busy


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return few_digits(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(few, tmp_path_factory):
    """An undisturbed run of three epochs."""
    return run(tmp_path_factory.mktemp("whole") / "run", few, "scenario.target=100", "progress=true")


def test_a_run_leaves_its_record_mlperf_s_log_and_its_page(whole):
    assert whole.status == 0, whole.stderr
    result = whole.result
    assert result["run"]["status"] == "finished"
    assert result["training"]["step"] == 15
    assert [one["epoch"] for one in result["training"]["evaluations"]] == [1, 2, 3]
    metrics, phases = result["metrics"], result["phases"]
    assert metrics["completed"] == 240
    assert metrics["train_samples_per_second"] > 0
    assert metrics["run_s"] == pytest.approx(phases["train_s"] + phases["evaluate_s"])
    named = ("prepare_s", "init_s", "train_s", "evaluate_s", "stop_s", "check_s")
    assert 0.5 * phases["total_s"] < sum(phases[key] for key in named) < phases["total_s"]
    assert result["verdict"]["compliance"]["mllog"]["passed"] is True
    assert result["verdict"]["accuracy"]["targets"]["minimum"] == {"top1": 100.0}
    if not result["verdict"]["valid"]:  # on so few images it may or may not get there
        assert "The target was not reached" in result["verdict"]["reasons"][0]
    page = (whole.folder / "report.html").read_text()
    for words_ in ("Training loss", "Top-1 accuracy", "Training throughput over time", "run_start", "3 evaluations"):
        assert words_ in page
    assert "TTFT" not in page
    assert "LoadGen" not in page
    live = [json.loads(line) for line in (whole.folder / "live.jsonl").read_text().splitlines()]
    assert live[-1]["completed"] == 240
    assert live[-1]["loss"] > 0
    assert "[train] 240 samples expected" in whole.stderr


@pytest.mark.parametrize(
    ("spoil", "more", "says"),
    [
        (lambda d: shutil.rmtree(d / "val"), (), "has no folder val/. Give a folder with train/<class>"),
        (lambda d: [shutil.rmtree(d / part / str(n)) for part in ("train", "val") for n in range(1, 10)], (),
         "one class only, 0"),
        (lambda d: shutil.rmtree(d / "train" / "3"), (), "differ in their classes: 3"),
        (lambda d: [shutil.rmtree(d / part / "3") for part in ("train", "val")], (), "has 9 classes"),
        (lambda d: None, ("scenario.global_batch_size=96",), "one step takes 96 images, the data set has 80"),
        (lambda d: None, ("backend.processes=100", "scenario.global_batch_size=100"),
         "80 images are fewer than the 100 ranks"),
        (lambda d: None, ("backend.processes=3",), "16 samples do not divide over 3 processes"),
        (lambda d: None, ("scenario.target=101",), "scenario.target: 101 is out of range"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(few, tmp_path, spoil, more, says):
    data = tmp_path / "data"
    shutil.copytree(few, data)
    spoil(data)
    done = run(tmp_path / "run", data, *more, "progress=false")
    assert done.status == 2, done.stderr
    assert says in done.last_line
    assert "Traceback" not in done.stderr


def test_random_images_are_for_speed_only_and_never_valid(tmp_path):
    done = run(tmp_path / "run", tmp_path, "dataset=synthetic_images", "dataset.samples=64", "scenario.steps=3")
    assert done.status == 0, done.stderr
    result = done.result
    assert not result["verdict"]["valid"]
    assert "The samples are random" in result["verdict"]["reasons"][0]
    assert result["training"]["status"] == "speed"
    assert result["metrics"]["train_samples_per_second"] > 0
    assert "top1" not in result["metrics"]

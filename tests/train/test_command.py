"""``python -m mlperf_exp ... scenario=train`` as a user starts it: its record, its page, and what goes wrong."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.train.few import Done, few_digits, run, words


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


def test_a_run_that_was_killed_goes_on_to_the_same_weights(few, whole, tmp_path):
    """kill -9 in the middle of an epoch, twice; the torn checkpoint of the second time is told and not used."""
    folder = tmp_path / "run"
    often = "backend.checkpoint_every_s=0.0001"  # after each step
    kill_after(folder, few, 7, often, "scenario.target=100")
    kill_after(folder, few, 11, often, "scenario.target=100")
    newest = max(folder.glob("train/checkpoints/step-*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    done = run(folder, few, often, "scenario.target=100")
    assert done.status == 0, done.stderr
    result = done.result
    assert 7 <= result["training"]["first_step"] < 15
    assert f"{newest.name} is torn" in " ".join(result["verdict"]["warnings"])
    assert any("went on from a checkpoint" in reason for reason in result["verdict"]["reasons"])
    assert "The run was started 3 times" in (folder / "report.html").read_text()
    same(done.weights(), whole.weights())


def kill_after(folder: Path, data: Path, step: int, *more: str) -> None:
    process = subprocess.Popen(words(folder, data, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               cwd=folder.parent)  # fmt: skip
    wait_for(lambda: any(saved >= step for saved in steps(folder)), process)
    process.kill()
    process.wait()
    wait_for(lambda: not ranks(folder))  # the reaper ends them


def steps(folder: Path) -> list[int]:
    return [int(path.stem.split("-")[1]) for path in folder.glob("train/checkpoints/step-*.json")]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_sigterm_keeps_a_checkpoint_and_the_same_command_goes_on(few, whole, tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen(words(folder, few, "scenario.target=100"), stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True, cwd=tmp_path)  # fmt: skip
    wait_for(lambda: (folder / "train/progress.jsonl").exists(), process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=200)
    done = Done(process.returncode, said, folder)
    if done.status == 0:
        pytest.fail("it ended before the signal came")
    assert done.status == 130, said
    assert done.result["run"]["status"] == "interrupted"
    assert steps(folder)
    again = run(folder, few, "scenario.target=100")
    assert again.status == 0, again.stderr
    assert again.result["training"]["first_step"] > 0
    same(again.weights(), whole.weights())


def test_a_loss_that_is_no_number_ends_the_run_as_failed_and_says_at_which_step(few, tmp_path):
    done = run(tmp_path / "run", few, "scenario.base_lr=100000", "scenario.warmup_epochs=0")
    assert done.status == 1
    assert "the loss was" in done.last_line
    assert " at step " in done.last_line
    result = done.result
    assert result["run"]["status"] == "failed"
    assert not result["verdict"]["valid"]
    assert (done.folder / "report.html").exists()


def test_a_finished_run_is_not_done_again_and_another_s_checkpoint_is_refused(few, whole, tmp_path):
    again = run(whole.folder, few, "scenario.target=100")
    assert again.status == 2
    assert "already holds a result" in again.last_line
    copy = tmp_path / "run"
    shutil.copytree(whole.folder, copy)
    (copy / "result.json").unlink()
    other = run(copy, few, "seed=2")
    assert other.status == 2
    assert "resume: step-00000015.pt was made with seed=1, this run has seed=2" in other.last_line
    never = run(copy, few, "resume=never")
    assert never.status == 2
    assert "resume is never" in never.last_line


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


def wait_for(condition, process=None, timeout_s=200.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        assert process is None or process.poll() is None, "it ended before"
        time.sleep(0.02)


def ranks(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"mlperf_exp.train.worker" in command and str(folder / "train/job.json").encode() in command:
            found.append(int(entry.name))
    return found

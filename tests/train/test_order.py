"""The order of samples, the schedule and the reference points: pure functions."""

import itertools
import json
import math

import pytest
from mlperf_logging import rcp_checker

from mlperf_exp.train import hyperparameters, schedule
from mlperf_exp.train.feed import places
from mlperf_exp.train.job import ImageTask, Job, Optimization, Submission
from mlperf_exp.train.rules import power_of_two_times

IMAGES = {
    "network": "resnet_tiny", "num_classes": 10, "image_size": 32, "label_smoothing": 0.1, "crop_min_area": 0.5,
    "flip": False, "channels_last": False, "loader": "torchvision",
}  # fmt: skip


def make_job(**changes):
    """A job on images; epochs are given for steps."""
    optimization = changes.pop("optimization", Optimization("sgd", 0.1, 1e-4, 5, 20, 2.0, 0.9, 5e-5))
    images = {key: changes.pop(key, value) for key, value in IMAGES.items()}
    epochs = [changes.pop(key, value) for key, value in {"max_epochs": 3, "eval_offset": 1, "eval_period": 2}.items()]
    values = {
        "run_dir": "/nowhere", "seed": 3, "task": ImageTask(**images),
        "data": None, "train_samples": 103, "eval_samples": 20, "workers": 0,
        "device": "cpu", "world": 1, "micro_batch": 4, "accumulation": 1, "optimization": optimization,
        "target": 97.0, "precision": "fp32", "compile": False,
        "log_every_steps": 5, "checkpoint_every_s": None, "checkpoints_kept": 2, "resume": True,
        "stall_timeout_s": 900.0, "submission": Submission("resnet", "open", "me", "here", "research"),
    }  # fmt: skip
    values |= changes
    epoch = values["train_samples"] // (values["world"] * values["micro_batch"] * values["accumulation"])
    steps = dict(zip(("max_steps", "first_eval", "eval_every"), (epoch * count for count in epochs), strict=True))
    return Job(**(steps | values))


def steps_of(job, first_step=0):
    """Each step's samples as a set, over all ranks."""
    ranks = [list(places(job, rank, first_step)) for rank in range(job.world)]
    return [
        [pair for micro in microbatches for pair in micro]
        for microbatches in zip(
            *(ranks[r][a :: job.accumulation] for r in range(job.world) for a in range(job.accumulation)), strict=False
        )
    ]


@pytest.mark.parametrize(("world", "micro", "accumulation"), [(1, 8, 1), (2, 4, 1), (1, 4, 2), (4, 2, 1), (2, 2, 2)])
def test_the_same_samples_make_a_step_however_they_are_shared(world, micro, accumulation):
    whole = [set(step) for step in steps_of(make_job(micro_batch=8))]
    shared = steps_of(make_job(world=world, micro_batch=micro, accumulation=accumulation))
    assert [set(step) for step in shared] == whole
    assert all(len(step) == 8 for step in shared)


def test_two_ranks_take_the_microbatches_of_one_rank_that_accumulates():
    alone = list(places(make_job(micro_batch=4, accumulation=2), 0, 0))
    first, second = (list(places(make_job(world=2, micro_batch=4), rank, 0)) for rank in (0, 1))
    assert alone == [micro for pair in zip(first, second, strict=True) for micro in pair]


def test_an_epoch_takes_no_sample_twice_and_another_order_each_time():
    job = make_job()
    taken = [pair for micro in places(job, 0, 0) for pair in micro]
    by_epoch = {epoch: [i for _, i in group] for epoch, group in itertools.groupby(taken, key=lambda pair: pair[0])}
    assert sorted(by_epoch) == [0, 1, 2]
    for order in by_epoch.values():
        assert len(set(order)) == len(order) == job.steps_per_epoch * job.global_batch
    assert by_epoch[0] != by_epoch[1]


@pytest.mark.parametrize("first_step", [1, 24, 25, 26, 60])
def test_a_run_that_is_continued_reads_on_where_it_stopped(first_step):
    job = make_job()
    assert list(places(job, 0, first_step)) == list(places(job, 0, 0))[first_step:]


def test_evaluations_follow_the_offset_and_the_period_and_close_the_run():
    job = make_job(max_epochs=10, eval_offset=3, eval_period=4)
    assert job.evaluation_steps() == [epoch * job.steps_per_epoch for epoch in (3, 7, 10)]
    assert make_job(max_epochs=7, eval_offset=3, eval_period=4).evaluation_steps()[-1] == 7 * 25


def test_the_rate_climbs_then_falls_to_its_end():
    o = Optimization("lars", 10.0, 1e-4, 10, 100, 2.0, 0.9, 5e-5)
    rates = [schedule.rate(o, step) for step in range(150)]
    assert rates[0] == pytest.approx(1.0)
    assert rates[9] == rates[10] == 10.0
    assert rates[60] == pytest.approx(1e-4 + (10 - 1e-4) * 0.25)
    assert all(b <= a for a, b in itertools.pairwise(rates[10:]))
    assert rates[110:] == pytest.approx([1e-4] * 40)


def test_the_reference_points_are_those_of_the_real_checker():
    from pathlib import Path

    text = (Path(rcp_checker.__file__).parent / "training_4.0.0" / "rcps_resnet.json").read_text()
    published = {entry["BS"]: entry for entry in json.loads(text).values()}
    for point in hyperparameters.LARS:
        entry = published[point.global_batch]
        given = entry["Hyperparams"]
        assert given["optimizer"] == "lars"
        assert given["opt_base_learning_rate"] == point.base_lr
        assert given["opt_learning_rate_warmup_epochs"] == point.warmup_epochs
        assert given["opt_momentum"] == point.momentum
        assert given["opt_weight_decay"] == point.weight_decay
        assert given["opt_learning_rate_decay_steps"] == point.decay_steps
        epochs = entry["Epochs to converge"]
        assert sum(epochs) / len(epochs) == pytest.approx(point.epochs, abs=0.11)


def test_between_two_points_lies_what_mlperf_allows():
    low, high = hyperparameters.LARS[1], hyperparameters.LARS[2]
    point, why = hyperparameters.reference(3600)
    assert min(low.base_lr, high.base_lr) < point.base_lr < max(low.base_lr, high.base_lr)
    assert low.epochs < point.epochs < high.epochs
    assert point.weight_decay in (low.weight_decay, high.weight_decay)
    assert "3,264" in why
    assert "4,096" in why
    assert hyperparameters.reference(4096)[0] == high


@pytest.mark.parametrize("size", [64, 256, 1632, 5000, 32768, 100_000])
def test_every_batch_size_gets_an_allowed_weight_decay(size):
    point, _ = hyperparameters.reference(size)
    assert power_of_two_times(point.weight_decay, 1e-4)
    assert point.base_lr > 0
    assert math.isfinite(point.epochs)
    assert not power_of_two_times(3e-5, 1e-4)

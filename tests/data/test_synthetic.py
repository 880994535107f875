"""Synthetic prompts: repeatable, and as long as CNN/DailyMail's."""

from __future__ import annotations

import numpy as np
import pytest

from mlperf_exp.data.synthetic import MIN_TOKENS, load
from mlperf_exp.errors import UserError


def test_the_same_arguments_give_the_same_prompts() -> None:
    first = load(20, 785, 0.53, 2540, 128000, seed=3)
    assert load(20, 785, 0.53, 2540, 128000, seed=3) == first
    assert load(20, 785, 0.53, 2540, 128000, seed=4) != first
    assert [len(sample.tokens) for sample in first[:4]] == [1119, 808, 1463, 617]  # on every machine


def test_lengths_are_log_normal_and_bounded() -> None:
    samples = load(13368, 785, 0.53, 2540, 128000, seed=1)
    lengths = np.array([len(sample.tokens) for sample in samples])
    assert len(samples) == 13368
    assert lengths.mean() == pytest.approx(785, rel=0.02)
    assert np.log(lengths).std() == pytest.approx(0.53, rel=0.03)
    assert lengths.min() >= MIN_TOKENS
    assert lengths.max() == 2540  # 0.7 % are clipped
    assert {sample.reference for sample in samples} == {""}
    assert len({sample.tokens[:16] for sample in samples}) == 13368  # no common prefix


@pytest.mark.parametrize("samples", [100, 1482, 5000])
def test_sets_of_any_size_and_seed_have_the_same_mean(samples: int) -> None:
    means = [np.mean([len(s.tokens) for s in load(samples, 785, 0.53, 2540, 128000, seed)]) for seed in (1, 2)]
    assert means[0] == means[1] == pytest.approx(781.7, abs=0.3)


def test_ids_are_plain_and_cover_the_vocabulary() -> None:
    ids = [token for sample in load(50, 100, 0.5, 200, 7, seed=1) for token in sample.tokens]
    assert set(ids) == set(range(7))
    assert {type(token) for token in ids} == {int}


def test_short_and_equal_prompts() -> None:
    assert {len(sample.tokens) for sample in load(9, 8, 0, 16, 100, seed=1)} == {8}
    assert max(len(sample.tokens) for sample in load(500, 16, 1.0, 16, 100, seed=1)) == 16


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ((0, 785, 0.53, 2540, 100), "dataset.samples"),
        ((1, 0, 0.53, 2540, 100), "dataset.mean_prompt_tokens"),
        ((1, 2541, 0.53, 2540, 100), "dataset.mean_prompt_tokens"),
        ((1, float("nan"), 0.53, 2540, 100), "dataset.mean_prompt_tokens"),
        ((1, 785, -0.1, 2540, 100), "dataset.sigma_prompt_tokens"),
        ((1, 785, float("inf"), 2540, 100), "dataset.sigma_prompt_tokens"),
        ((1, 785, 0.53, 2540, 0), "model.architecture.vocab_size"),
    ],
)
def test_values_out_of_range_are_named(arguments: tuple[int, float, float, int, int], key: str) -> None:
    with pytest.raises(UserError) as caught:
        load(*arguments, seed=1)
    assert caught.value.key == key

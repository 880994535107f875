"""Samples out of texts: every token once, in a seeded order, however they are shared."""

import numpy as np
import pytest

from mlperf_exp.data import indexed
from mlperf_exp.train.job import TextTask
from mlperf_exp.train.text.packing import Packed, count
from mlperf_exp.train.text.samples import TrainingTexts, UnreadableTokens, ValidationTexts

LENGTH = 7


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Two files of 60 texts, each text a run of numbers of its own; one is longer than samples, some are empty."""
    folder = tmp_path_factory.mktemp("texts")
    random = np.random.default_rng(1)
    lengths = [40, 0, *random.integers(0, 12, 58).tolist()]
    starts = np.cumsum([1, *lengths])
    texts = [list(range(start, start + length)) for start, length in zip(starts, lengths, strict=False)]
    indexed.write(folder / "a", texts[:25])
    indexed.write(folder / "b", texts[25:])
    return [folder / "a", folder / "b"]


def task(**changes):
    values = {
        "layers": 2, "hidden_size": 16, "intermediate_size": 32, "heads": 2, "kv_heads": 1, "head_dim": 8,
        "vocab_size": 1000, "rope_theta": 500_000.0, "rope_scaling": None, "rms_norm_eps": 1e-5,
        "sequence_length": LENGTH, "train": ("a", "b"), "validation": "a", "clip_norm": 1.0, "recompute": False,
    }  # fmt: skip
    return TextTask(**(values | changes))


def test_without_a_seed_texts_stand_in_their_order(paths):
    packed = Packed(paths, LENGTH)
    assert len(packed) == count(paths, LENGTH)
    whole = np.concatenate([packed[0][:1], *(packed[i][1:] for i in range(len(packed)))])
    assert whole.tolist() == list(range(1, len(whole) + 1))


def test_a_seed_shuffles_whole_texts_and_loses_no_token(paths):
    packed = Packed(paths, LENGTH, seed=3)
    whole = np.concatenate([packed[0][:1], *(packed[i][1:] for i in range(len(packed)))])
    assert len(set(whole.tolist())) == len(whole)
    assert whole.tolist() != sorted(whole.tolist())
    breaks = int((np.diff(whole) != 1).sum())
    assert breaks < 60  # only between texts
    assert all((packed[i][-1] == packed[i + 1][0]) for i in range(len(packed) - 1))


def test_the_order_is_the_seed_s_alone(paths):
    one, same, other = (Packed(paths, LENGTH, seed) for seed in (3, 3, 4))
    assert one[5].tolist() == same[5].tolist()
    assert any(one[i].tolist() != other[i].tolist() for i in range(len(one)))


@pytest.mark.parametrize(("samples", "world"), [(9, 2), (8, 2), (3, 4)])
def test_ranks_evaluate_every_sample_once_and_keep_one_pace(paths, samples, world):
    shares = [ValidationTexts(paths, task(), samples, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    weighed = [share[slot] for share in shares for slot in range(len(share))]
    counted = sorted(int(tokens[0]) for tokens, weight in weighed if weight)
    assert counted == [1 + LENGTH * i for i in range(samples)]


def test_tokens_of_another_tokenizer_are_named(paths):
    with pytest.raises(UnreadableTokens, match=r"token \d+ in .*a, .*b is not of the model's 100"):
        [TrainingTexts(paths, task(vocab_size=100), 3)[(0, i)] for i in range(20)]

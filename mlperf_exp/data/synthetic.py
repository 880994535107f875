"""Prompts of random token ids with lengths like CNN/DailyMail's: for speed, where the data set cannot be had.

Lengths are log-normal. With the defaults of ``config.Dataset`` (mean 785 tokens, sigma 0.53) and the limit of 2540
tokens that MLPerf's longest prompt leaves beside 128 output tokens (2668 together), 0.7 % of the lengths meet the
limit and are clipped to it, which lowers the mean by 0.5 %, to 781. The lengths are the distribution's quantiles in a
random order, so that a set of any size has that mean, and speeds on two of them compare. No prompt shares a prefix with
another.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from mlperf_exp.errors import UserError
from mlperf_exp.messages import Sample

MIN_TOKENS = 32
"""The instruction alone has about as many; shorter prompts do not occur in the real data."""


def load(samples: int, mean_tokens: float, sigma: float, max_tokens: int, vocab_size: int, seed: int) -> list[Sample]:
    """Make ``samples`` prompts; the same arguments give the same prompts on every machine.

    Args:
        samples: how many.
        mean_tokens: mean of the lengths before clipping to ``[MIN_TOKENS, max_tokens]``.
        sigma: standard deviation of the lengths' logarithm; 0 makes all equally long.
        max_tokens: the longest prompt that the model is set up for.
        vocab_size: ids are uniform in ``[0, vocab_size)``; leave special tokens out of it.
        seed: of NumPy's default generator.

    Returns:
        Samples with an empty reference text: they can be timed, never scored.

    Raises:
        UserError: for a key of ``dataset`` that is out of its range.
    """
    if samples < 1:
        raise UserError("dataset.samples", f"{samples} samples are asked for", "Choose at least 1")
    if not 1 <= mean_tokens <= max_tokens:
        raise UserError(
            "dataset.mean_prompt_tokens",
            f"is {mean_tokens:g}, and the model's prompts may have 1 to {max_tokens} tokens",
            "Lower it, or raise model.max_prompt_tokens",
        )
    if not (math.isfinite(sigma) and 0 <= sigma <= 3):
        raise UserError("dataset.sigma_prompt_tokens", f"is {sigma:g}", "Choose 0 (all equal) to 3; 0.53 is typical")
    if vocab_size < 1:
        raise UserError("model.architecture.vocab_size", f"is {vocab_size}", "Give the model's vocabulary size")
    random = np.random.default_rng(seed)
    normal = NormalDist(math.log(mean_tokens) - sigma**2 / 2, sigma) if sigma else None
    logs = [normal.inv_cdf((i + 0.5) / samples) if normal else math.log(mean_tokens) for i in range(samples)]
    drawn = random.permutation(np.exp(logs))
    lengths = np.clip(np.rint(drawn), min(MIN_TOKENS, math.floor(mean_tokens)), max_tokens).astype(np.int64)
    ids = random.integers(0, vocab_size, int(lengths.sum()), dtype=np.int32)
    return [Sample(tuple(part.tolist()), "") for part in np.split(ids, np.cumsum(lengths)[:-1])]

"""Extractive question answering: the encoder's folder, questions as tokens, and SQuAD's F1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlperf_exp.config import Weights
from mlperf_exp.data.tokens import Tokens, synthetic
from mlperf_exp.inputs import Inputs
from mlperf_exp.messages import Plan

_SYNTHETIC = 10833


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Pieces of question and text as tokens."""

    tokens: Tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, place: int) -> Any:
        begins = self.tokens.begins
        return self.tokens.values[begins[place] : begins[place + 1]]


def load(plan: Plan) -> Inputs:
    """Find the encoder, read the questions; see :func:`mlperf_exp.inputs.load`."""
    config, model, dataset = plan.config, plan.config.model, plan.config.dataset
    assert model.weights is Weights.dummy
    count = dataset.samples or model.performance_samples or _SYNTHETIC
    tokens = synthetic(
        count, dataset.mean_tokens, dataset.sigma_tokens, model.max_tokens, model.vocab_size, config.seed
    )
    return Inputs(None, QuestionSet(tokens), None, tokens.lengths.tolist())

"""The state of a training run now, for the display, the live log and MLflow's live curves."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainLive:
    """``completed`` counts samples; the last two are the last evaluation's, NaN before the first and of other kinds."""

    elapsed_s: float
    completed: int
    epoch: float
    samples_per_second: float
    loss: float
    learning_rate: float
    top1: float = math.nan  # percent
    log_perplexity: float = math.nan
    errors: int = 0

    def words(self) -> list[str]:
        """As a display shows it."""
        from mlperf_exp.display import number

        shown = [
            f"epoch {self.epoch:.2f}",
            f"{number(self.samples_per_second)} samples/s",
            f"loss {number(self.loss)}",
            f"learning rate {number(self.learning_rate)}",
        ]
        if not math.isnan(self.top1):
            shown.append(f"top-1 {self.top1:.2f} %")
        if not math.isnan(self.log_perplexity):
            shown.append(f"log perplexity {self.log_perplexity:.3f}")
        return shown

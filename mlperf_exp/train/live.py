"""The state of a training run now, for the display, the live log and MLflow's live curves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainLive:
    """``completed`` counts samples; ``top1`` is the last evaluation's, NaN before the first."""

    elapsed_s: float
    completed: int
    epoch: float
    samples_per_second: float
    loss: float
    learning_rate: float
    top1: float
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
        return shown if self.top1 != self.top1 else [*shown, f"top-1 {self.top1:.2f} %"]

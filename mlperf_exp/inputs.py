"""Finds what a plan reads, before anything is started: the machine, the model's folder, the samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mlperf_exp import running
from mlperf_exp.config import (
    Decoder,
    Device,
    ImageClassifier,
    LightningBackend,
    SimulatedBackend,
    TorchBackend,
    Training,
    VllmBackend,
)
from mlperf_exp.environment import fast_type, gpus
from mlperf_exp.errors import UserError
from mlperf_exp.messages import Derived, Plan, Sample, Score

_SIMULATED_SAMPLES = 1024


class Scorer(Protocol):
    """Knows the references, and turns LoadGen's accuracy log into a score."""

    def score(self, log: Path, on_progress: Callable[[int, int], None]) -> Score:
        """Score ``mlperf_log_accuracy.json``; ``on_progress`` is told samples done and samples in all.

        Raises:
            RunFailed: the log is missing or broken.
        """

    def text(self, score: Score) -> str:
        """The line of ``accuracy.txt`` that MLCommons' submission checker reads."""


@runtime_checkable
class ScoresAnswers(Protocol):
    """A scorer that can score some answers only, as TEST01 wants where a system may answer differently twice."""

    @property
    def main(self) -> str:
        """The figure of the score that counts: ``top1``, ``f1``."""

    def score_answers(self, answers: Mapping[int, bytes]) -> Score:
        """Score answers by sample.

        Raises:
            RunFailed: there are none, or they are of another form.
        """

    def text(self, score: Score) -> str:
        """See :class:`Scorer`."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run works on. ``model`` is None where no checkpoint is read here, ``scorer`` where nothing is scored.

    ``prompt_tokens`` has each sample's length in tokens; None where samples are no texts.
    """

    model: Path | None
    samples: Any  # a sequence of what the model's kind is asked with
    scorer: Scorer | None
    prompt_tokens: Sequence[int] | None = None
    derived: tuple[Derived, ...] = ()
    warnings: tuple[str, ...] = ()


def check_machine(plan: Plan) -> tuple[str, ...]:
    """Compare the hardware profile with this machine; returns warnings.

    Raises:
        UserError: the profile wants GPUs that are not here.
    """
    hw = plan.config.hw
    if not isinstance(plan.config.backend, VllmBackend | TorchBackend | LightningBackend):
        return ()
    if hw.device is Device.cpu:
        if isinstance(plan.config.model, Decoder):
            from mlperf_exp.kinds.decoder import check_host_memory

            check_host_memory(plan)
        return ()
    found = gpus()
    if len(found) < hw.gpus_per_node:
        have = f"{len(found)} ({', '.join(gpu.name for gpu in found)})" if found else "none"
        raise UserError(
            "hw",
            f"{hw.name} wants {hw.gpus_per_node} NVIDIA GPU{'s' if hw.gpus_per_node > 1 else ''} on this machine, "
            f"which has {have}",
            "Choose a profile that it has (hw=cpu with experiment=quickstart runs anywhere), or send the run to "
            "servers with backend=openai backend.urls=[...]",
        )
    warnings = []
    first = found[0]
    if hw.gpu and hw.gpu.removeprefix("NVIDIA ").split()[0] not in first.name:
        warnings.append(f"The profile {hw.name} describes a {hw.gpu}, this machine has a {first.name}.")
    if first.memory_mib < 0.97 * hw.memory_gib * 1024:
        warnings.append(f"The profile says {hw.memory_gib:g} GiB a GPU, the driver {first.memory_mib / 1024:.1f} GiB.")
    if first.used_mib > 2048 and not running.kept():  # who shares the GPU later is told by the telemetry
        warnings.append(f"GPU {first.index} is in use by others: {first.used_mib / 1024:.1f} GiB were taken before.")
    return tuple(warnings)


def load(plan: Plan) -> Inputs:
    """Find the model, read the samples.

    Raises:
        UserError: something is missing or broken; names the key and the remedy.
    """
    config = plan.config
    warnings = check_machine(plan)
    if isinstance(config.scenario, Training):
        from mlperf_exp.train import sources

        return replace(sources.load(plan), warnings=warnings)
    if isinstance(config.backend, SimulatedBackend):
        count = config.dataset.samples or config.model.performance_samples or _SIMULATED_SAMPLES
        found = Inputs(None, [Sample((1,), "")] * count, None, [1] * count)
    else:
        found = _reader(config.model)(plan)
    _check_drawn(config.scenario.samples, len(found.samples))
    return replace(found, warnings=(*warnings, *found.warnings), derived=(*found.derived, *_found_here(plan)))


def _found_here(plan: Plan) -> tuple[Derived, ...]:
    """What follows from this machine's processor, where networks run on it in this process."""
    config = plan.config
    here = isinstance(config.backend, TorchBackend) and config.hw.device is Device.cpu
    if not here or config.model.dtype != "auto":
        return ()
    return (Derived("model.dtype", fast_type(), "the narrowest type that this processor computes with"),)


def _reader(model: Any) -> Callable[[Plan], Inputs]:
    """What finds the model and reads the samples of its kind."""
    if isinstance(model, Decoder):
        from mlperf_exp.kinds import decoder

        return decoder.load
    if isinstance(model, ImageClassifier):
        from mlperf_exp.kinds import images

        return images.load
    from mlperf_exp.kinds import questions

    return questions.load


def _check_drawn(drawn: int | None, present: int) -> None:
    """LoadGen would take more samples than there are without a word, and report them."""
    if drawn is not None and drawn > present:
        remedy = f"Give at most {present:,}, or null for all"
        raise UserError("scenario.samples", f"{drawn:,} are to be drawn from, the data set has {present:,}", remedy)

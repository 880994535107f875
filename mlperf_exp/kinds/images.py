"""Image classifiers: the weights' file, images cut to size, and top-1 accuracy."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_exp.config import ImageClassifier, Images, Weights
from mlperf_exp.data.bars import bar
from mlperf_exp.errors import RunFailed, UserError
from mlperf_exp.inputs import Inputs
from mlperf_exp.messages import Derived, Plan, Score

_SYNTHETIC = 1024
_MODELS = Path("outputs") / "models"


@dataclass(frozen=True, slots=True)
class ImageSet:
    """``pixels`` is ``uint8 [images, side, side, 3]``, in memory or mapped from a file; ``labels`` class numbers."""

    pixels: Any
    labels: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Any, int]:
        return self.pixels[place], int(self.labels[place])


@dataclass(frozen=True, slots=True)
class TopOne:
    """The share of images whose class was named."""

    labels: NDArray[np.int32]

    def score(self, log: Path, on_progress: Callable[[int, int], None]) -> Score:
        """See :class:`mlperf_exp.inputs.Scorer`."""
        from mlperf_exp.data.accuracy_log import read_accuracy_log

        answers = read_accuracy_log(log)
        on_progress(len(answers), len(answers))
        return self.score_answers({sample: bytes(answer) for sample, answer in answers.items()})

    def score_answers(self, answers: Mapping[int, bytes]) -> Score:
        """The same of answers by sample: each an int32 class."""
        if not answers:
            raise RunFailed("accuracy: no sample has an answer, so there is nothing to score")
        good = sum(int.from_bytes(data[:4], "little", signed=True) == self.labels[n] for n, data in answers.items())
        return Score({"top1": round(100.0 * good / len(answers), 4), "top1_good": float(good)}, len(answers))

    def text(self, score: Score) -> str:
        """See :class:`mlperf_exp.inputs.Scorer`; as ``accuracy-imagenet.py`` prints it."""
        good = int(score.metrics["top1_good"])
        return f"accuracy={score.metrics['top1']:.3f}%, good={good}, total={score.samples}"


def load(plan: Plan) -> Inputs:
    """Find the weights, read the images; see :func:`mlperf_exp.inputs.load`."""
    config, model = plan.config, plan.config.model
    dummy = model.weights is Weights.dummy
    folder = folder_of(config.dataset)
    if config.dataset.synthetic or (dummy and (folder is None or not folder.exists())):
        samples = synthetic(model, config.dataset.samples or model.performance_samples or _SYNTHETIC, config.seed)
        why = f"dummy weights need no images, and there is no folder {folder}: random pixels"
        derived = () if config.dataset.synthetic else (Derived("dataset", "synthetic", why),)
    else:
        samples, derived = read(model, config.dataset, folder, config.progress), ()
    weights = None if dummy else find_weights(model, config.progress)
    scorer = TopOne(samples.labels) if "accuracy" in plan.modes else None
    return Inputs(weights, samples, scorer, derived=derived)


def synthetic(model: ImageClassifier, samples: int, seed: int) -> ImageSet:
    """Random pixels."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (samples, model.image_size, model.image_size, 3), dtype=np.uint8)
    return ImageSet(pixels, random.integers(0, model.classes, samples, dtype=np.int32))


def read(model: ImageClassifier, dataset: Images, folder: Path | None, progress: bool) -> ImageSet:
    """The data set's images, cut to the model's size; cached.

    Raises:
        UserError: see :mod:`mlperf_exp.data.images`.
    """
    from mlperf_exp.data import images

    if folder is None:
        raise UserError("dataset.path", f"{dataset.name} needs a folder", "Give one, or choose dataset=digits")
    found = images.find(folder, model.classes)
    if dataset.samples is not None and dataset.samples > len(found):
        problem = f"{dataset.samples:,} samples are asked for, and {folder} has {len(found):,}"
        raise UserError("dataset.samples", problem, f"Give at most {len(found):,}, or null for all")
    found = found[: dataset.samples]
    with bar("Cutting images to size", progress) as on_progress:
        pixels = images.cached(found, model.resize, model.image_size, Path(dataset.cache), on_progress)
    return ImageSet(pixels, np.array([image.label for image in found], dtype=np.int32))


def folder_of(dataset: Images) -> Path | None:
    """The data set's folder, which need not exist; the built-in digits are written first. None: it names none."""
    if dataset.path == "builtin:digits":
        from mlperf_exp.data.digits import write_digits

        return write_digits(Path(dataset.cache) / "digits")
    return None if dataset.path is None else Path(dataset.path).expanduser()


def find_weights(model: ImageClassifier, progress: bool) -> Path:
    """The file of the weights: ``model.path``, torchvision's in the torch cache, or those trained here.

    Raises:
        UserError: there is none.
    """
    if model.path == "builtin:digits":
        from mlperf_exp.data.digits import write_digits
        from mlperf_exp.learn_digits import ensure

        with bar("Training on digits", progress) as on_progress:
            return ensure(_MODELS / "resnet_tiny", write_digits(Path("outputs") / "cache" / "digits"), on_progress)
    if model.path == "torchvision":
        from mlperf_exp.networks import PUBLISHED

        home = Path(os.environ.get("TORCH_HOME", "~/.cache/torch")).expanduser()
        path = home / "hub" / "checkpoints" / PUBLISHED[model.network]
        fetch = f"https://download.pytorch.org/models/{path.name}"
        remedy = f"Put {fetch} there, give model.path=FILE, or measure speed only with model.weights=dummy"
        problem = f"torchvision's weights are not in the torch cache ({path})"
    else:
        path = Path(model.path).expanduser()
        problem, remedy = f"there is no {path}", "Give a .pth or .safetensors file, or model.weights=dummy"
    if not path.exists():
        raise UserError("model.path", problem, remedy)
    return path

"""Extractive question answering: the encoder's folder, questions as tokens, and SQuAD's F1."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mlperf_exp.config import ExtractiveQa, Questions, Weights
from mlperf_exp.data import squad
from mlperf_exp.data.bars import bar
from mlperf_exp.data.tokens import Tokens, synthetic
from mlperf_exp.errors import RunFailed, UserError
from mlperf_exp.inputs import Inputs
from mlperf_exp.messages import Derived, Plan, Score

_SYNTHETIC = 10833
_TINY = Path("outputs") / "models" / "bert_tiny"


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Pieces of question and text as tokens."""

    tokens: Tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, place: int) -> Any:
        begins = self.tokens.begins
        return self.tokens.values[begins[place] : begins[place + 1]]


@dataclass(frozen=True, slots=True)
class SquadScorer:
    """F1 and exact match against what people answered."""

    questions: Sequence[squad.Question]
    pieces: squad.Pieces
    max_answer_tokens: int
    main: ClassVar[str] = "f1"

    def score(self, log: Path, on_progress: Callable[[int, int], None]) -> Score:
        """See :class:`mlperf_exp.inputs.Scorer`."""
        from mlperf_exp.data.accuracy_log import read_accuracy_log

        answers = read_accuracy_log(log)
        scored = self.score_answers({sample: answer.tobytes() for sample, answer in answers.items()})
        on_progress(len(answers), len(answers))
        return scored

    def score_answers(self, answers: Mapping[int, bytes]) -> Score:
        """The same of answers by sample: each float32 ``[tokens, 2]``."""
        if not answers:
            raise RunFailed("accuracy: no sample has an answer, so there is nothing to score")
        logits = {sample: np.frombuffer(data, dtype=np.float32).reshape(-1, 2) for sample, data in answers.items()}
        best = squad.best_answers(logits, self.pieces, self.questions, self.max_answer_tokens)
        return Score(squad.scores(best, self.questions), len(answers))

    def text(self, score: Score) -> str:
        """See :class:`mlperf_exp.inputs.Scorer`; as the official script prints it."""
        return json.dumps({"exact_match": score.metrics["exact_match"], "f1": score.metrics["f1"]})


def load(plan: Plan) -> Inputs:
    """Find the encoder, read the questions; see :func:`mlperf_exp.inputs.load`."""
    config, model, dataset = plan.config, plan.config.model, plan.config.dataset
    dummy = model.weights is Weights.dummy
    if dataset.synthetic or (dummy and not (dataset.path and Path(dataset.path).is_file() and _local(model))):
        count = dataset.samples or model.performance_samples or _SYNTHETIC
        tokens = synthetic(
            count, dataset.mean_tokens, dataset.sigma_tokens, model.max_tokens, model.vocab_size, config.seed
        )
        why = f"dummy weights need no text, and there is no file {dataset.path}: random questions of its lengths"
        derived = () if dataset.synthetic else (Derived("dataset", "synthetic", why),)
        return Inputs(None, QuestionSet(tokens), None, tokens.lengths.tolist(), derived)
    folder = _folder(model, config.progress)
    path = _data(dataset)
    questions = squad.read(path)
    with bar("Tokenizing questions", config.progress) as on_progress:
        made = squad.cached(path, questions, model, folder, Path(dataset.cache), on_progress)
    count = len(made.tokens)
    if dataset.samples is not None and dataset.samples > count:
        problem = f"{dataset.samples:,} samples are asked for, and {path} makes {count:,}"
        raise UserError("dataset.samples", problem, f"Give at most {count:,}, or null for all")
    tokens = Tokens(made.tokens.values, made.tokens.begins[: (dataset.samples or count) + 1])
    scorer = SquadScorer(questions, made, model.max_answer_tokens) if "accuracy" in plan.modes else None
    return Inputs(None if dummy else folder, QuestionSet(tokens), scorer, tokens.lengths.tolist())


def _data(dataset: Questions) -> Path:
    if dataset.path == "builtin:squad_tiny":
        from mlperf_exp.data.squad_tiny import write_questions

        return write_questions(Path(dataset.cache) / "squad_tiny") / "dev.json"
    if dataset.path is None:
        raise UserError("dataset.path", f"{dataset.name} needs a file", "Give one, or choose dataset=squad_tiny")
    return Path(dataset.path).expanduser()


def _local(model: ExtractiveQa) -> bool:
    return model.path.startswith("builtin:") or Path(model.path).expanduser().is_dir()


def _folder(model: ExtractiveQa, progress: bool) -> Path:
    """The encoder's folder: named, made here, or in the Hugging Face cache."""
    if model.path == "builtin:bert_tiny":
        from mlperf_exp.data.squad_tiny import write_questions
        from mlperf_exp.learn_squad import ensure

        with bar("Training on questions", progress) as on_progress:
            return ensure(_TINY, write_questions(Path("outputs") / "cache" / "squad_tiny"), model, on_progress)
    if _local(model):
        return Path(model.path).expanduser()
    from mlperf_exp.kinds.decoder import cached

    return cached(model)

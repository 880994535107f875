"""Scores are the reference's, to the last digit, in one process and in several."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import nltk
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTokenizer, PunktTrainer, save_punkt_params
from rouge_score.rouge_scorer import RougeScorer

from mlperf_exp.data.punkt import sentence_splitter
from mlperf_exp.data.rouge import accuracy_text, score
from mlperf_exp.errors import RunFailed
from mlperf_exp.messages import Score

TYPES = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
TRAINING = "Dr. Smith met Dr. Jones. They spoke with Dr. Brown, and Dr. Black left. It was late. " * 40


@pytest.fixture
def untrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An NLTK without any data, whatever this machine has."""
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An NLTK data folder with a small English model, trained and saved by NLTK itself."""
    root = tmp_path / "nltk_data"
    (root / "tokenizers" / "punkt_tab").mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(root)])
    trainer = PunktTrainer()
    trainer.ABBREV = 0.1
    trainer.train(TRAINING)
    assert "dr" in trainer.get_params().abbrev_types
    save_punkt_params(trainer.get_params(), str(root / "tokenizers" / "punkt_tab" / "english"))
    return root


def as_ids(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def as_texts(batch: list[list[int]]) -> list[str]:
    return ["".join(map(chr, ids)) for ids in batch]


def scored(predictions: Sequence[str], references: Sequence[str], processes: int | None = 1) -> Score:
    return score({n: as_ids(text) for n, text in enumerate(predictions)}, references, as_texts, processes)


def reference(
    predictions: Sequence[str], references: Sequence[str], split: Callable[[str], list[str]]
) -> dict[str, float]:
    """MLCommons' evaluation.py line by line, with what the `rouge` metric of `evaluate` calls in its turn."""
    preds = ["\n".join(split(pred.strip())) for pred in predictions]
    targets = ["\n".join(split(target.strip())) for target in references]
    scorer = RougeScorer(rouge_types=TYPES, use_stemmer=True)
    scores = [scorer.score(target, pred) for target, pred in zip(targets, preds, strict=True)]
    result = {k: f"{round(np.mean([s[k].fmeasure for s in scores]) * 100, 4)}" for k in TYPES}
    found: dict[str, float] = {k: float(v) for k, v in result.items()}
    return found | {"gen_len": int(np.sum([len(pred) for pred in preds])), "gen_num": len(preds)}


def news(count: int, seed: int = 1) -> list[str]:
    """Made-up news: few words, so that they overlap; with what breaks tokenizers."""
    random = np.random.default_rng(seed)
    text = (
        "the a of police said running runs ran quickly house houses U.S. Dr. 3.5 $40m — “late” café "
        "it's president election elected storm killed two people in Paris on Monday who's naïve\n"
    )
    words = text.split(" ")
    sentences = [" ".join(random.choice(words, random.integers(1, 22))).capitalize() + "." for _ in range(count * 4)]
    return [" ".join(sentences[4 * n : 4 * n + random.integers(1, 5)]) for n in range(count)]


def test_known_values(untrained: None) -> None:
    # 5 of 6 words, 3 of 5 pairs, 5 in order; then all words, 2 of 3 pairs, 2 of 4 in order, but each sentence whole.
    predictions = ["the cat lay on the mat.", "Gamma delta. Alpha beta."]
    references = ["the cat sat on the mat.", "Alpha beta. Gamma delta."]
    assert scored(predictions[:1], references[:1]).metrics == {
        "rouge1": 83.3333,
        "rouge2": 60.0,
        "rougeL": 83.3333,
        "rougeLsum": 83.3333,
        "gen_len": 23,
        "gen_num": 1,
    }
    assert scored(predictions[1:], references[1:]).metrics == {
        "rouge1": 100.0,
        "rouge2": 66.6667,
        "rougeL": 50.0,
        "rougeLsum": 100.0,
        "gen_len": 24,
        "gen_num": 1,
    }
    assert scored(predictions, references).metrics == {
        "rouge1": 91.6667,
        "rouge2": 63.3333,
        "rougeL": 66.6667,
        "rougeLsum": 91.6667,
        "gen_len": 47,
        "gen_num": 2,
    }


def test_words_are_stemmed(untrained: None) -> None:
    assert scored(["running dogs"], ["run dog"]).metrics["rouge2"] == 100.0


def test_outer_space_is_stripped_and_space_between_sentences_becomes_one_line_break(untrained: None) -> None:
    assert scored(["\n One is here.  \n Two is not. \n"], ["x"]).metrics["gen_len"] == len("One is here.\nTwo is not.")


def test_empty_outputs_score_nothing(untrained: None) -> None:
    metrics = scored(["", "the cat"], ["the cat", "the cat"]).metrics
    assert metrics["rouge1"] == 50.0
    assert metrics["gen_len"] == 7
    assert metrics["gen_num"] == 2


def test_equal_to_the_plain_loop_untrained(untrained: None) -> None:
    predictions, references = news(60, 1), news(60, 2)
    expected = reference(predictions, references, PunktSentenceTokenizer().tokenize)
    assert 0 < expected["rouge2"] < expected["rougeL"] < 100
    assert scored(predictions, references).metrics == expected


def test_the_trained_model_is_used_and_equal_to_the_plain_loop(trained: Path) -> None:
    predictions, references = news(60, 1), news(60, 2)
    result = scored(predictions, references)
    assert result.notes == ()
    assert result.metrics == reference(predictions, references, PunktTokenizer("english").tokenize)
    assert result.metrics != reference(predictions, references, PunktSentenceTokenizer().tokenize)


@given(st.lists(st.tuples(st.text(max_size=60), st.text(max_size=60)), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_equal_to_the_plain_loop_for_any_text(pairs: list[tuple[str, str]]) -> None:
    predictions, references = [a for a, _ in pairs], [b for _, b in pairs]
    split, _ = sentence_splitter()
    assert scored(predictions, references).metrics == reference(predictions, references, split)


def test_several_processes_give_the_same_with_the_parents_sentence_model(trained: Path) -> None:
    predictions, references = news(1100, 3), news(1100, 4)
    progress: list[tuple[int, int]] = []
    outputs = {n: np.array(as_ids(text), dtype=np.int32) for n, text in enumerate(predictions)}
    result = score(outputs, references, as_texts, 2, lambda done, total: progress.append((done, total)))
    assert result == scored(predictions, references, processes=1)
    assert result.notes == ()
    assert progress[-1] == (1100, 1100)
    assert [done for done, _ in progress] == sorted({done for done, _ in progress})
    assert len(progress) > 10


def test_references_belong_to_the_samples_index(untrained: None) -> None:
    outputs = {2: as_ids("storm"), 0: as_ids("house")}
    result = score(outputs, ["house", "none", "storm"], as_texts, 1)
    assert result.metrics["rouge1"] == 100.0
    assert result.metrics["gen_num"] == 2
    assert any("Only 2 of the data set's 3 samples" in note for note in result.notes)


def test_nothing_to_score_and_strays_are_errors() -> None:
    with pytest.raises(RunFailed, match="no sample has an output"):
        score({}, ["a"], as_texts, 1)
    for stray in (1, -1):
        with pytest.raises(IndexError, match=f"sample {stray}, and the data set has 1"):
            score({stray: [1]}, ["a"], as_texts, 1)


def test_without_a_model_one_note_says_what_is_not_comparable(untrained: None) -> None:
    (note,) = scored(["a"], ["a"]).notes
    assert "rougeLsum is not comparable" in note
    assert "python -m mlperf_exp.data.prepare punkt" in note
    assert "\n" not in note


def test_a_damaged_model_is_noted_and_does_not_cost_the_score(trained: Path) -> None:
    (trained / "tokenizers" / "punkt_tab" / "english" / "abbrev_types.txt").write_bytes(b"\xff\xfe\xff")
    result = scored(["the cat"], ["the cat"])
    assert result.metrics["rouge1"] == 100.0
    assert "cannot be read" in result.notes[0]


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_a_killed_process_ends_the_scoring_with_a_reason(untrained: None) -> None:
    texts = news(3000)

    def kill(done: int, total: int) -> None:
        for worker in workers():
            worker.kill()

    with pytest.raises(RunFailed, match="a scoring process died"):
        score({n: as_ids(text) for n, text in enumerate(texts)}, texts, as_texts, 2, kill)


def test_an_interrupt_leaves_no_process_behind(untrained: None) -> None:
    texts = news(3000)
    seen: list[int] = []

    def interrupt(done: int, total: int) -> None:
        seen.append(len(workers()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score({n: as_ids(text) for n, text in enumerate(texts)}, texts, as_texts, 2, interrupt)
    assert seen == [2]  # real processes, and the first report ended it
    assert workers() == []


def test_a_scoring_process_imports_nothing_heavy() -> None:
    code = (
        "import sys, mlperf_exp.data.rouge_pairs;"
        "print([m for m in ('torch', 'transformers', 'vllm', 'hydra', 'mlperf_exp.config') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ACC_PATTERN in tools/submission/submission_checker/constants.py of mlcommons/inference.
CHECKER = {
    "rouge1": r".*'rouge1':\s+'?([\d.]+)'?.*",
    "rouge2": r".*'rouge2':\s+'?([\d.]+)'?.*",
    "rougeL": r".*'rougeL':\s+'?([\d.]+)'?.*",
    "rougeLsum": r".*'rougeLsum':\s+'?([\d.]+)'?.*",
    "gen_len": r".*'gen_len':\s([\d.]+).*",
}


def test_the_checker_reads_the_accuracy_line(untrained: None) -> None:
    result = scored(news(5), news(5, 2))
    line = accuracy_text(result)
    for name, pattern in CHECKER.items():
        found = re.match(pattern, line)
        assert found is not None, name
        assert float(found[1]) == result.metrics[name]


def test_numpys_numbers_become_plain_ones() -> None:
    metrics: dict[str, float] = {name: np.float64(38.7792) for name in TYPES}
    metrics |= {"gen_len": np.int64(8167644), "gen_num": 13368.0}  # type: ignore[dict-item]
    assert accuracy_text(Score(metrics, 1)) == (
        "{'rouge1': '38.7792', 'rouge2': '38.7792', 'rougeL': '38.7792', 'rougeLsum': '38.7792', "
        "'gen_len': 8167644, 'gen_num': 13368}"
    )

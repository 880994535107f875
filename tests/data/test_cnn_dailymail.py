"""MLCommons' files are read as they are, and whatever is wrong with one is told in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlperf_exp.data.cnn_dailymail import TEMPLATE, load, prompt
from mlperf_exp.errors import UserError
from mlperf_exp.messages import Sample

Record = dict[str, Any]


def record(n: int = 0, **changes: Any) -> Record:
    made: Record = {
        "instruction": {"llama": TEMPLATE},
        "input": f"Article {n} — it rained in {{Malmö}}.",
        "tok_input": [128000, 10 + n, 7],
        "output": f"Rain {n} .\nMore rain .",
    }
    made |= changes
    return {key: value for key, value in made.items() if value is not ...}


def write(folder: Path, content: Any) -> Path:
    path = folder / "cnn_eval.json"
    data = content if isinstance(content, bytes) else json.dumps(content, indent=4, ensure_ascii=False).encode()
    path.write_bytes(data)
    return path


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_the_files_own_ids_are_the_prompt(tmp_path: Path) -> None:
    path = write(tmp_path, [record(0), record(1)])
    assert load(path, None, None, 2540, 128256) == [
        Sample((128000, 10, 7), "Rain 0 .\nMore rain ."),
        Sample((128000, 11, 7), "Rain 1 .\nMore rain ."),
    ]


def test_the_prompt_is_the_references_to_the_letter(tmp_path: Path) -> None:
    path = write(tmp_path, [record(0, tok_input=...)])  # ids are not needed where they are made
    (sample,) = load(path, letters, None, 2540)
    assert "".join(map(chr, sample.tokens)) == (
        "Summarize the following news article in 128 tokens. Please output the summary only, without any other text."
        "\n\nArticle:\nArticle 0 — it rained in {Malmö}.\n\nSummary:"
    )
    assert prompt("{input}").endswith("Article:\n{input}\n\nSummary:")


def test_limit_takes_the_first_and_reads_no_fault_behind_them(tmp_path: Path) -> None:
    path = write(tmp_path, [record(0), record(1), record(2, input="")])
    assert [sample.tokens[1] for sample in load(path, None, 2, 2540)] == [10, 11]


def test_other_writers_are_understood(tmp_path: Path) -> None:
    compact = json.dumps([record(0, extra=1)]).encode()  # ASCII escapes, one line, a field more
    assert load(write(tmp_path, b"\xef\xbb\xbf" + compact), None, None, 2540)[0].reference == "Rain 0 .\nMore rain ."


GOOD = json.dumps([record(0), record(1)], indent=4, ensure_ascii=False).encode()

PATH = "dataset.path"
FAULTS: dict[str, tuple[Any, dict[str, Any], str, list[str]]] = {
    # name: content, arguments, key, what the line must say
    "cut short": (GOOD[:-40], {}, PATH, ["cut short", f"byte {len(GOOD) - 40}", "line "]),
    "cut inside a letter": (GOOD[: GOOD.index("—".encode()) + 1], {}, PATH, ["cut short"]),
    "empty file": (b"", {}, PATH, ["is empty"]),
    "broken": (GOOD.replace(b'"output"', b"output", 1), {}, PATH, ["broken", "at byte ", "line 12"]),
    "text behind": (GOOD + b"\n{}", {}, PATH, ["trailing characters"]),
    "latin-1": (GOOD.decode().replace("—", "-").encode("latin-1"), {}, PATH, ["not UTF-8", "line 6"]),
    "utf-16": (GOOD.decode().encode("utf-16"), {}, PATH, ["not UTF-8 (byte 0, line 1)"]),
    "an object": ({"data": []}, {}, PATH, ["expected array, got object"]),
    "a list of strings": (["a"], {}, PATH, ["record 0 (from 0): expected object, got str"]),
    "empty list": ([], {}, PATH, ["empty list", "mlperf_exp.data.prepare"]),
    "missing fields": (
        [record(0), record(1, input=..., output=...)],
        {},
        PATH,
        ["record 1", "input, output"],
    ),
    "missing all": ([{}], {}, PATH, ["record 0", "input, output, tok_input"]),
    "null article": (
        [record(0), record(1, input=None)],
        {},
        PATH,
        ["record 1 (from 0), input: expected str"],
    ),
    "empty article": ([record(0), record(1, input=" \n")], {}, PATH, ["record 1", "empty article"]),
    "no ids": (
        [record(0), record(1, tok_input=...)],
        {},
        PATH,
        ["record 1", "tok_input", "dataset.tokenize=true"],
    ),
    "null ids": ([record(0, tok_input=None)], {}, PATH, ["record 0", "tok_input", "dataset.tokenize=true"]),
    "empty ids": ([record(0, tok_input=[])], {}, PATH, ["record 0", "tok_input", "dataset.tokenize=true"]),
    "ids as text": ([record(0, tok_input=[1, "2"])], {}, PATH, ["tok_input[1]", "expected int, got str"]),
    "negative id": ([record(0, tok_input=[1, -2])], {}, PATH, ["tok_input[1]", ">= 0"]),
    "id too large": ([record(0), record(1)], {"vocab_size": 128000}, PATH, ["record 0", "128000", "127999"]),
    "prompt too long": (
        [record(0), record(1, tok_input=[5] * 30), record(2, tok_input=[5] * 20)],
        {"max_tokens": 12},
        PATH,
        ["2 of 3 prompts", "12 tokens allowed", "record 1", "with 30", "model.max_prompt_tokens=30"],
    ),
    "limit too large": ([record(0)], {"limit": 2}, "dataset.samples", ["2 samples", "has 1", "null for all"]),
    "limit zero": ([record(0)], {"limit": 0}, "dataset.samples", ["0 samples", "1 to 1"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_file_gets_one_line(tmp_path: Path, name: str) -> None:
    content, arguments, key, words = FAULTS[name]
    path = write(tmp_path, content)
    with pytest.raises(UserError) as caught:
        load(path, None, arguments.get("limit"), arguments.get("max_tokens", 2540), arguments.get("vocab_size"))
    line = str(caught.value)
    assert caught.value.key == key
    assert "\n" not in line
    assert str(path) in line
    for word in words:
        assert word in line


def test_a_missing_file_names_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist") as caught:
        load(tmp_path / "cnn_eval.json", None, None, 2540)
    for remedy in ("python -m mlperf_exp.data.prepare cnn_dailymail", "dataset=articles", "dataset=synthetic"):
        assert remedy in caught.value.remedy


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path, None, None, 2540)


@pytest.mark.parametrize(
    ("tokenize", "remedy"), [(None, "dataset.tokenize=true"), (lambda text: [1, 500], "tokenizer that belongs")]
)
def test_ids_of_another_model_are_refused(
    tmp_path: Path, tokenize: Callable[[str], list[int]] | None, remedy: str
) -> None:
    with pytest.raises(UserError, match="vocabulary ends at 399") as caught:
        load(write(tmp_path, [record(0)]), tokenize, None, 2540, vocab_size=400)
    assert remedy in caught.value.remedy


def test_tokenized_prompts_are_measured_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="longer than the 50 tokens"):
        load(write(tmp_path, [record(0)]), letters, None, 50)

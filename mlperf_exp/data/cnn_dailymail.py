"""CNN/DailyMail articles with their summaries, from MLCommons' files as they are.

``cnn_eval.json`` (13,368 samples, datacenter) and ``sample_cnn_eval_5000.json`` (edge) hold a JSON list of
``{instruction, input, tok_input, output}``: the article, its prompt as token ids of Llama 3.1, the reference summary.
Source: mlcommons/inference, ``language/llama3.1-8b/{download_cnndm,dataset}.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType

from mlperf_exp.errors import UserError
from mlperf_exp.messages import Sample

TEMPLATE = (
    "Summarize the following news article in 128 tokens. Please output the summary only, without any other text."
    "\n\nArticle:\n{input}\n\nSummary:"
)
"""The reference's prompt: no chat template, nothing cut off."""

_KEY = "dataset.path"
_GET = "Make it with: python -m mlperf_exp.data.prepare cnn_dailymail, or choose dataset=articles or dataset=synthetic"
_FETCH_AGAIN = "Fetch or make the file again"


class _Text(msgspec.Struct):
    """What is read where the prompt is tokenized here; every field may be missing, so that all can be named."""

    input: str | UnsetType = UNSET
    output: str | UnsetType = UNSET


class _Tokenized(_Text):
    """What is read where the file's own token ids are the prompt."""

    tok_input: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] | UnsetType | None = UNSET


def prompt(article: str) -> str:
    """The text that the model is asked with."""
    return TEMPLATE.format(input=article)


def load(
    path: Path,
    tokenize: Callable[[str], list[int]] | None,
    limit: int | None,
    max_tokens: int,
    vocab_size: int | None = None,
) -> list[Sample]:
    """Read the first ``limit`` samples of ``path`` (None: all), in the file's order.

    Args:
        path: a file in MLCommons' schema.
        tokenize: turns a prompt into ids, with the beginning-of-text token; None: the file's ``tok_input`` is used.
        limit: ``dataset.samples``.
        max_tokens: the longest prompt that the model is set up for, in tokens.
        vocab_size: ids must be below it; None: not checked.

    Raises:
        UserError: naming what is wrong with the file, and where.
    """
    records = _read(path, _Text if tokenize else _Tokenized)
    if not records:
        raise UserError(_KEY, f"{path} holds an empty list", _GET)
    if limit is not None and not 1 <= limit <= len(records):
        raise UserError(
            "dataset.samples",
            f"{limit} samples are asked for, and {path} has {len(records)}",
            f"Choose 1 to {len(records)}, or null for all",
        )
    samples = [_sample(path, n, record, tokenize) for n, record in enumerate(islice(records, limit))]
    _check_tokens(path, samples, max_tokens, vocab_size, own_ids=tokenize is None)
    return samples


def _sample(path: Path, number: int, record: _Text, tokenize: Callable[[str], list[int]] | None) -> Sample:
    article, reference = record.input, record.output
    if isinstance(article, UnsetType) or isinstance(reference, UnsetType):
        missing = [name for name in ("input", "output") if getattr(record, name) is UNSET]
        if isinstance(record, _Tokenized) and not record.tok_input:
            missing.append("tok_input")
        raise UserError(_KEY, f"{path}: record {number} (from 0) lacks {', '.join(missing)}", _schema())
    if not article.strip():
        raise UserError(_KEY, f"{path}: record {number} (from 0) has an empty article", "Take the record out")
    if tokenize is not None:
        return Sample(tuple(tokenize(prompt(article))), reference)
    tokens = record.tok_input if isinstance(record, _Tokenized) else None
    if isinstance(tokens, UnsetType) or not tokens:
        raise UserError(
            _KEY,
            f"{path}: record {number} (from 0) has no token ids in tok_input",
            "Set dataset.tokenize=true to make them from the article",
        )
    return Sample(tokens, reference)


def _check_tokens(
    path: Path, samples: Sequence[Sample], max_tokens: int, vocab_size: int | None, own_ids: bool
) -> None:
    too_long = [n for n, sample in enumerate(samples) if len(sample.tokens) > max_tokens]
    if too_long:
        worst = max(too_long, key=lambda n: len(samples[n].tokens))
        longest = len(samples[worst].tokens)
        raise UserError(
            _KEY,
            f"{path}: {len(too_long)} of {len(samples)} prompts are longer than the {max_tokens} tokens allowed; the "
            f"longest is record {worst} (from 0) with {longest}",
            f"Set model.max_prompt_tokens={longest} if the model's context allows it, or take such records out",
        )
    if vocab_size is None:
        return
    for n, sample in enumerate(samples):
        # The file's ids have been read as 0 or more already; a tokenizer of another model gives too large ones.
        if sample.tokens and max(sample.tokens) >= vocab_size:
            remedy = "Set dataset.tokenize=true" if own_ids else "Use the tokenizer that belongs to the model"
            raise UserError(
                _KEY,
                f"{path}: record {n} (from 0) has token id {max(sample.tokens)}, and the model's vocabulary ends at "
                f"{vocab_size - 1}",
                remedy,
            )


def _read(path: Path, record: type[_Text]) -> Sequence[_Text]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(_KEY, f"{path} does not exist", _GET) from None
    except OSError as error:
        raise UserError(_KEY, f"{path} cannot be read ({error.strerror})", "Name a readable JSON file") from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return msgspec.json.decode(data, type=list[record])  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        raise UserError(_KEY, f"{path}: {_in_words(str(error))}", _schema()) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(_KEY, f"{path} {_broken(data, str(error))}", _FETCH_AGAIN) from None


def _broken(data: bytes, message: str) -> str:
    """Where and how ``data`` is no UTF-8 or no JSON; ``message`` is the decoder's."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return f"is not UTF-8 (byte {error.start}, line {_line(data, error.start)})"
    if not data.strip():
        return "is empty"
    found = re.search(r"^(.*) \(byte (\d+)\)$", message)
    if found is None:
        return f"is cut short: it ends at byte {len(data)}, line {_line(data, len(data))}, inside the list"
    at = int(found[2])
    return f"is broken: {found[1]} at byte {at}, line {_line(data, at)}"


def _line(data: bytes, position: int) -> int:
    return data.count(b"\n", 0, position) + 1


def _in_words(message: str) -> str:
    """``Expected `str`, got `null` - at `$[3].input``` as ``record 3 (from 0), input: expected str, got null``."""
    what, _, where = message.partition(" - at ")
    what = what[0].lower() + what[1:].replace("`", "")
    found = re.match(r"`\$\[(\d+)\]\.?(.*)`$", where)
    if found is None:
        return what
    return f"record {found[1]} (from 0){', ' + found[2] if found[2] else ''}: {what}"


def _schema() -> str:
    return "Give a JSON list of {instruction, input, tok_input, output}, as MLCommons' cnn_eval.json has it"

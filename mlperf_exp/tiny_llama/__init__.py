"""A tiny Llama whose greedy answers are known without running it: a whole real engine can be checked against them.

It copies. Given MLPerf's summarization prompt it answers with the line break after ``Article:``, the article's lead
(the text before its first blank line) and the end-of-text token, at most 128 tokens in all. :mod:`.weights` says how
attention, KV cache and MLPs bring that about, so that a fault in any of them shows in the tokens.

The checkpoint is an ordinary Hugging Face folder (LlamaForCausalLM, float32, 5 MB), made in a second without torch,
with the same bytes every time; its tokenizer is trained on the ``articles`` data set.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from mlperf_exp.data import ARTICLES
from mlperf_exp.errors import UserError

MAX_NEW_TOKENS = 128
BOS, EOS = "<|begin_of_text|>", "<|eot_id|>"
STAMP = "build.json"  # marks a folder as ours, and says what it was built from


class Codec(Protocol):
    """The part of a Hugging Face tokenizer that the golden answer needs."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Text to token ids."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """Token ids to text."""

    def convert_tokens_to_ids(self, token: str) -> int:
        """The id of one token."""


def golden_tokens(tokenizer: Codec, article: str) -> list[int]:
    """The tokens that the model must generate for ``article``, by construction.

    They begin with the line break after ``Article:`` and end with the end-of-text token, unless the 128 tokens are
    used up before it. Holds for articles that do not begin with white space, and whose lead repeats no sequence of
    three tokens.
    """
    lead = article.split("\n\n", 1)[0]
    ids = [*tokenizer.encode("\n" + lead, add_special_tokens=False), tokenizer.convert_tokens_to_ids(EOS)]
    return ids[:MAX_NEW_TOKENS]


def golden(tokenizer: Codec, article: str) -> str:
    """The text of :func:`golden_tokens` as MLPerf scores it: without special tokens, stripped."""
    return tokenizer.decode(golden_tokens(tokenizer, article), skip_special_tokens=True).strip()


def ensure(folder: Path) -> Path:
    """The checkpoint in ``folder``: the one that is there, or a new one where it is missing or out of date.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    return folder if _stamp(folder) == _fingerprint() else build(folder)


def build(folder: Path) -> Path:
    """Write the checkpoint to ``folder``, which is whole at every moment, also where two processes build it at once.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    from mlperf_exp.tiny_llama.tokenizer import train, write_tokenizer
    from mlperf_exp.tiny_llama.weights import write_weights

    if folder.exists() and _stamp(folder) is None and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(
            "model.path", f"{folder} exists and is not a tiny Llama", "Name another folder, or remove this one"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        tokenizer = train(_prompts())
        write_tokenizer(aside, tokenizer)
        write_weights(aside, tokenizer)
        (aside / STAMP).write_text(json.dumps({"fingerprint": _fingerprint()}) + "\n")
        aside.chmod(0o755)
        for file in aside.iterdir():
            file.chmod(0o644)
        _replace(folder, aside)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _replace(folder: Path, new: Path) -> None:
    """Rename ``new`` to ``folder``; what was there goes away. A folder that is not empty cannot be renamed over."""
    while True:
        try:
            new.rename(folder)
            return
        except OSError:
            if not folder.exists():
                raise
        if _stamp(folder) == _fingerprint():
            return  # another process was faster, with the same content
        old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            folder.rename(old)
        except FileNotFoundError:
            pass  # another process has just taken it away
        finally:
            shutil.rmtree(old, ignore_errors=True)


def _prompts() -> list[str]:
    """Every prompt of the ``articles`` data set, filled in."""
    rows = json.loads(ARTICLES.read_text(encoding="utf-8"))
    return [row["instruction"]["llama"].format(input=row["input"]) for row in rows]


def _fingerprint() -> str:
    """A hash of all that the checkpoint depends on: articles, this package, the library that trains the tokenizer."""
    digest = hashlib.sha256(version("tokenizers").encode())
    for path in [ARTICLES, *sorted(Path(__file__).parent.glob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _stamp(folder: Path) -> str | None:
    """The fingerprint that ``folder`` was built from; None where it is not ours."""
    try:
        return str(json.loads((folder / STAMP).read_text())["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _unwritable(folder: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return UserError("model.path", f"cannot write {folder}: {reason}", "Name a folder that can be written")

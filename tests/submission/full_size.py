"""A data set of MLPerf's size for the tiny Llama: 13,368 short articles whose answers are known beforehand.

``python tests/submission/full_size.py FILE [COUNT]`` writes it in MLCommons' schema, with the same bytes every time.
Each article is one invented sentence, which the model copies (see :mod:`mlperf_exp.tiny_llama`); its reference says
part of it in another order, so that ROUGE is neither 0 nor 100.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from mlperf_exp.data.cnn_dailymail import TEMPLATE
from mlperf_exp.tiny_llama import ensure

SAMPLES = 13368
_WHO = [
    "council",
    "harbour",
    "museum",
    "bakery",
    "school",
    "library",
    "orchestra",
    "theatre",
    "farm",
    "hospital",
    "station",
    "garden",
    "team",
    "mayor",
]
_DID = [
    "opened",
    "sold",
    "repaired",
    "closed",
    "painted",
    "moved",
    "praised",
    "counted",
    "renamed",
    "planted",
    "measured",
    "lost",
    "found",
    "shared",
]
_HOW = [
    "small",
    "old",
    "green",
    "quiet",
    "heavy",
    "bright",
    "narrow",
    "wooden",
    "broken",
    "famous",
    "empty",
    "northern",
    "cheap",
    "early",
]
_WHAT = [
    "boats",
    "bridges",
    "books",
    "lamps",
    "trees",
    "roads",
    "bells",
    "wheels",
    "maps",
    "gates",
    "kitchens",
    "windows",
    "clocks",
    "fields",
]
_WHEN = [
    "spring",
    "winter",
    "Monday",
    "Friday",
    "March",
    "June",
    "morning",
    "evening",
    "night",
    "week",
    "month",
    "year",
]


def write(path: Path, samples: int = SAMPLES) -> Path:
    """Write ``samples`` records to ``path``."""
    path.write_text(json.dumps(records(samples)))
    return path


def records(samples: int = SAMPLES) -> list[dict[str, Any]]:
    """``{instruction, input, tok_input, output}`` for each sample, token ids by the tiny Llama's tokenizer."""
    from tokenizers import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer.from_file(str(ensure(Path(folder) / "llama3_tiny") / "tokenizer.json"))
    draw = random.Random(61)
    found: list[dict[str, Any]] = []
    while len(found) < samples:
        who, other = draw.sample(_WHO, 2)
        what, when, number = draw.choice(_WHAT), draw.choice(_WHEN), draw.randint(2, 999)
        did, how = draw.choice(_DID), draw.choice(_HOW)
        lead = f"The {who} {did} {number} {how} {what} near the {other} last {when}."
        if not _distinct(tokenizer.encode("\n" + lead, add_special_tokens=False).ids):
            continue
        article = f"{lead}\n\nNo more is known of the {what}."
        ids = tokenizer.encode(TEMPLATE.format(input=article)).ids
        output = f"Last {when} {number} {what} were {did} by the {who}."
        found.append({"instruction": {"llama": TEMPLATE}, "input": article, "tok_input": ids, "output": output})
    return found


def _distinct(ids: list[int]) -> bool:
    """Whether no three tokens follow each other twice: the model finds its place by them."""
    pairs = list(pairwise(ids))
    triples = [(*pair, last) for pair, last in zip(pairs, ids[2:], strict=False)]
    return len(set(triples)) == len(triples)


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else SAMPLES))

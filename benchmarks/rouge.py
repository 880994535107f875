"""How long a full accuracy score takes; prints JSON. Bar: 13,368 samples in under 60 s on 2 cores.

The texts are made up, with the real data's sizes: outputs of 128 tokens (about 560 characters in a few sentences),
references of about 300, drawn from a vocabulary as uneven as English.

    python benchmarks/rouge.py [--samples 13368] [--processes N]
"""

from __future__ import annotations

import argparse
import json
import os
import time

import numpy as np

from mlperf_exp.data.rouge import score

_VOCABULARY = 30000
_LETTERS = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))


def words(random: np.random.Generator) -> list[str]:
    """Words of 2 to 12 letters, the frequent ones short; every 20th token ends a sentence."""
    lengths = np.clip(np.rint(random.normal(np.linspace(3, 9, _VOCABULARY), 1.5)), 2, 12).astype(int)
    return ["".join(random.choice(_LETTERS, size=n)) for n in lengths]


def draw(random: np.random.Generator, count: int) -> list[int]:
    """Token ids with Zipf's frequencies."""
    ranks = np.arange(1, _VOCABULARY + 1)
    return [int(i) for i in random.choice(_VOCABULARY, size=count, p=(1 / ranks) / (1 / ranks).sum())]


def main() -> None:
    """Measure once and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=13368)
    parser.add_argument("--processes", type=int, default=None)
    options = parser.parse_args()
    random = np.random.default_rng(1)
    vocabulary = words(random)

    def text(ids: list[int]) -> str:
        lines = [ids[i : i + 17] for i in range(0, len(ids), 17)]
        return " ".join(" ".join(vocabulary[i] for i in line).capitalize() + "." for line in lines)

    pool = draw(random, 1_000_000)
    starts = random.integers(0, len(pool) - 200, 2 * options.samples)
    # 112 words with spaces and full stops have about 560 characters, 58 about 290.
    outputs = {i: pool[starts[i] : starts[i] + 112] for i in range(options.samples)}
    references = [text(pool[s : s + 58]) for s in starts[options.samples :]]
    began = time.perf_counter()
    result = score(outputs, references, lambda batch: [text(ids) for ids in batch], options.processes)
    seconds = time.perf_counter() - began
    print(
        json.dumps(
            {
                "benchmark": "rouge",
                "samples": options.samples,
                "seconds": round(seconds, 2),
                "processes": options.processes or len(os.sched_getaffinity(0)),
                "characters_per_output": round(result.metrics["gen_len"] / options.samples, 1),
                "characters_per_reference": round(sum(map(len, references)) / options.samples, 1),
                "notes": list(result.notes),
            }
        )
    )


if __name__ == "__main__":
    main()

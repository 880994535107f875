"""The figures of accuracy: how each is called and written. A figure that is not here is shown by its own name."""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    """A metric's label, and how its value is formatted."""

    label: str
    form: str


FIGURES = {
    "rouge1": Figure("ROUGE-1", ".4f"),
    "rouge2": Figure("ROUGE-2", ".4f"),
    "rougeL": Figure("ROUGE-L", ".4f"),
    "rougeLsum": Figure("ROUGE-Lsum", ".4f"),
    "gen_len": Figure("GEN_LEN (characters)", ",.0f"),
    "top1": Figure("Top-1 accuracy (%)", ".4f"),
    "log_perplexity": Figure("Log perplexity", ".4f"),
    "f1": Figure("F1 (%)", ".4f"),
    "exact_match": Figure("Exact match (%)", ".4f"),
}


def figure(name: str) -> Figure:
    """How the metric ``name`` is shown."""
    return FIGURES.get(name, Figure(name, ",.6g"))

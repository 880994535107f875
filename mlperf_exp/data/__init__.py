"""Data sets: samples for the load, references for the score."""

from __future__ import annotations

from pathlib import Path

ARTICLES = Path(__file__).parent / "articles.json"  # the data set that comes with the project

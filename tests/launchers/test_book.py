"""The record of a sweep on other machines that is submitted in batches, as a search does."""

from __future__ import annotations

from pathlib import Path

from hydra_plugins.mlperf_launchers._book import Book
from hydra_plugins.mlperf_launchers._cluster import JobSpec
from hydra_plugins.mlperf_launchers._ledger import Entry, Ledger
from hydra_plugins.mlperf_launchers._outcome import Outcome

from mlperf_exp.sweep import record


def batch(folder: Path, first: int, *values: str) -> None:
    """A batch of jobs, each with one setting, all of which finish."""
    specs = [
        JobSpec(first + i, ("model=x", f"qps={value}"), ("true",), folder / str(first + i), facts={"sweep": True})
        for i, value in enumerate(values)
    ]
    book = Book(Ledger(folder, "fake", {}, [Entry(spec) for spec in specs]), 1)
    for spec in specs:
        spec.folder.mkdir()
        (spec.folder / "result.json").write_text('{"verdict": {"valid": true}}')
        book.ended(Outcome(spec.number, None, spec.folder, 1.0))
    book.close(False)


def test_a_later_batch_keeps_the_jobs_of_those_before(tmp_path: Path) -> None:
    batch(tmp_path, 0, "1")
    batch(tmp_path, 1, "2", "3")
    swept = record.read(tmp_path)
    assert [job["number"] for job in swept["jobs"]] == [0, 1, 2]
    assert [job["own"] for job in swept["jobs"]] == [{"qps": "1"}, {"qps": "2"}, {"qps": "3"}]
    assert [job["outcome"] for job in swept["jobs"]] == ["valid"] * 3
    assert (swept["overrides"], swept["status"]) == (["model=x"], "finished")


def test_another_start_of_the_sweep_begins_a_record_of_its_own(tmp_path: Path) -> None:
    batch(tmp_path, 0, "1", "2")
    for folder in ("0", "1"):
        (tmp_path / folder).rename(tmp_path / f"old-{folder}")
    batch(tmp_path, 0, "5")
    assert [job["overrides"] for job in record.read(tmp_path)["jobs"]] == [["model=x", "qps=5"]]

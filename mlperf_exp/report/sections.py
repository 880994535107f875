"""The sections between a run's phases and its plan, in their order: one line each."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlperf_exp.report import (
    client_section,
    expected,
    insight,
    repeats_section,
    replicas_section,
    search_section,
    telemetry_section,
)
from mlperf_exp.report.section import Build, Section

log = logging.getLogger(__name__)

SECTIONS: tuple[Build, ...] = (
    search_section.build,
    repeats_section.build,
    replicas_section.build,
    client_section.build,
    telemetry_section.section,
    expected.section,
    insight.section,
)


def build(result: Mapping[str, Any], run_dir: Path) -> Iterator[Section]:
    """The sections that have something to say; one that breaks says so, and costs the page nothing else."""
    for make in SECTIONS:
        name = make.__module__.rsplit(".", 1)[-1]
        try:
            section = make(result, run_dir)
        except Exception as error:  # whatever a folder of a broken run holds, its page is made
            log.exception("the section %s broke", name)
            note = f"This part could not be made: {type(error).__name__}: {error}"
            section = Section(name, name.replace("_", " ").capitalize(), notes=(note,))
        if section is not None:
            yield section

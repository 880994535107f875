"""Some of the faults of ``make faults`` on each change: the cheap ones that no other test tries."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.attempt import Attempt
from tests.faults.faults import FAULTS, Fault, problems

CHEAP = ("folder made read-only", "data file replaced", "two runs in one folder", "terminal closed")


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.name in CHEAP], ids=lambda fault: fault.name)
def test_it_ends_as_it_should(tmp_path: Path, fault: Fault) -> None:
    if fault.name == "folder made read-only" and os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root; CI is root")
    attempt = Attempt(tmp_path, "server")
    fault.do(attempt)
    assert not problems(fault, attempt)

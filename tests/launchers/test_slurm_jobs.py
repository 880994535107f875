"""Jobs of several parts, as Slurm tells of them; the real Slurm is in ``tests/clusters``."""

from __future__ import annotations

import pytest
from hydra_plugins.mlperf_launchers import _slurm_jobs
from hydra_plugins.mlperf_launchers._cluster import Kind


@pytest.mark.parametrize(
    ("queue", "accounting", "kind"),
    [
        ("51+0|RUNNING|a|None\n51+1|PENDING||Priority", "", Kind.running),
        ("51+0|COMPLETED|a|None\n51+1|RUNNING|b|None", "", Kind.running),
        ("", "51+0|FAILED|1:0|a|None\n51+1|NODE_FAIL|0:0|b|None", Kind.lost),
        ("", "51+0|CANCELLED by 0|0:15|a|None\n51+1|PREEMPTED|0:0|b|None", Kind.preempted),
        ("", "51+0|COMPLETED|0:0|a|None\n51+1|FAILED|7:0|b|None", Kind.failed),
        ("", "51+0|COMPLETED|0:0|a|None\n51+1|COMPLETED|0:0|b|None", Kind.succeeded),
    ],
)
def test_a_job_of_parts_is_one(monkeypatch: pytest.MonkeyPatch, queue: str, accounting: str, kind: Kind) -> None:
    def asked(program: str, *_: str, known: bool = True) -> str:
        return queue if program == "squeue" else accounting

    monkeypatch.setattr(_slurm_jobs, "asked", asked)
    found = _slurm_jobs.states(["51"])
    assert found["51"].kind is kind
    assert set(found["51"].nodes) <= {"a", "b"}

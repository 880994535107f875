"""Hydra's own suites for launchers, on every launcher of this project that runs without a cluster.

All of their tests pass; ``hydra.extra.pytest_plugin`` brings their fixtures.
"""

from __future__ import annotations

import pytest
from hydra import version
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite

LAUNCHERS = [("local", [])]


@pytest.fixture(autouse=True)
def _as_in_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests compose with ``version_base="1.3"``, which Hydra then keeps; its suites want the default."""
    monkeypatch.setattr(version.VersionBase.instance(), "version_base", version._UNSPECIFIED_)


@pytest.mark.parametrize(("launcher_name", "overrides"), LAUNCHERS)
class TestLauncher(LauncherTestSuite):
    pass


@pytest.mark.parametrize(
    ("launcher_name", "overrides"),
    [("local", ["hydra/sweeper=basic", "hydra.sweeper.max_batch_size=2", "hydra.launcher.max_parallel=2"])],
)
class TestBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=local", "hydra.job.chdir=true"])]
)
class TestIntegration(IntegrationTestSuite):
    pass

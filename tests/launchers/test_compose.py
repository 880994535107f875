"""A job that is copied from another is the job that Hydra composes."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra_plugins.mlperf_launchers._compose import Composer
from omegaconf import DictConfig, OmegaConf

from mlperf_exp import cli

SHARED = ["model=llama3_tiny", "backend=simulated", "scenario=server"]


class Loader:
    """Hydra's loader, and how often it composed from files."""

    def __init__(self) -> None:
        self._loader = GlobalHydra.instance().config_loader()
        self.calls = 0

    def load_sweep_config(self, master: DictConfig, overrides: list[str]) -> DictConfig:
        self.calls += 1
        return self._loader.load_sweep_config(master, overrides)

    def get_group_options(self, group: str) -> list[str]:
        return self._loader.get_group_options(group)


@pytest.fixture
def loader() -> Iterator[Loader]:
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        yield Loader()


@pytest.fixture
def master(loader: Loader) -> DictConfig:
    return compose("config", ["backend=simulated"], return_hydra_config=True)


def plain(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=False, enum_to_str=True)


@pytest.mark.parametrize(
    "values",
    [
        ["scenario.target_qps=2", "scenario.target_qps=4.5", "scenario.target_qps=null"],
        ["name=one", "name='a, \\'b\\' ${seed}'", "name=${model.name}"],
        ["++seed=1", "++seed=2"],
        ["seed=1", "seed=1"],
        ["tracking.enabled=true", "tracking.enabled=false"],
    ],
)
def test_values(loader: Loader, master: DictConfig, values: list[str]) -> None:
    composer = Composer(loader)  # type: ignore[arg-type]
    for value in values:
        job = [*SHARED, value, "dataset.samples=20"]
        assert plain(composer(master, job)) == plain(loader._loader.load_sweep_config(master, job))
    assert loader.calls == 1


@pytest.mark.parametrize(
    "jobs",
    [
        [["scenario=server"], ["scenario=offline"], ["scenario=server"]],  # the third is the first again
        [["hydra.job.name=a"], ["hydra.job.name=b"]],
        [["++backend={}"], ["++backend={latency: {}}"]],
        [["seed=1", "seed=2"], ["seed=3", "seed=2"]],
        [["~tracking.interval_s"], ["~tracking.timeout_s"]],
    ],
)
def test_what_goes_the_whole_way(loader: Loader, master: DictConfig, jobs: list[list[str]]) -> None:
    composer = Composer(loader)  # type: ignore[arg-type]
    for job in jobs:
        try:
            expected = plain(loader._loader.load_sweep_config(master, job))
        except HydraException as error:
            with pytest.raises(type(error)):
                composer(master, job)
        else:
            assert plain(composer(master, job)) == expected
    assert loader.calls >= 2


def test_errors_are_hydras_own(loader: Loader, master: DictConfig) -> None:
    composer = Composer(loader)  # type: ignore[arg-type]
    composer(master, ["scenario.target_qps=2"])
    with pytest.raises(HydraException) as ours:
        composer(master, ["scenario.target_qps=fast"])
    with pytest.raises(HydraException) as theirs:
        loader._loader.load_sweep_config(master, ["scenario.target_qps=fast"])
    assert str(ours.value) == str(theirs.value)


def test_a_configuration_has_one_owner(loader: Loader, master: DictConfig) -> None:
    composer = Composer(loader)  # type: ignore[arg-type]
    legal = composer(master, ["seed=1"])
    mine = composer(master, ["seed=1"])
    assert legal is mine  # composed once for the sweeper, and handed to the launcher
    mine.hydra.job.num = 1
    assert composer(master, ["seed=1"]) is not mine
    assert OmegaConf.is_missing(composer(master, ["seed=2"]).hydra.job, "num")
    assert len(cloudpickle.dumps(composer)) < 2 * len(cloudpickle.dumps(Composer(loader)))  # type: ignore[arg-type]
    assert isinstance(pickle.loads(cloudpickle.dumps(composer)), Composer)

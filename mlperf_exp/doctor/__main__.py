"""``python -m mlperf_exp.doctor hw=PROFILE [--json]``: is this machine, or each node of a launcher, fit for a profile?

    python -m mlperf_exp.doctor hw=a30
    python -m mlperf_exp.doctor hydra/launcher=kubernetes hw=2xa30 hydra.launcher.backend.image=...

Exit status 0 where nothing fails, 1 where something does, 2 for a slip.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mlperf_exp.cli import one_job, serve
from mlperf_exp.config import DoctorConfig
from mlperf_exp.errors import RunFailed

_HERE = ("hydra/launcher=local", "hydra/launcher=basic")


def task(cfg: DictConfig) -> dict[str, object]:
    """One examination; on several nodes, this process's part of it."""
    return one_job(_examine, cfg)


def _examine(cfg: DictConfig) -> dict[str, object]:
    from mlperf_exp.doctor.examine import examine, names
    from mlperf_exp.doctor.report import as_json, failed, show
    from mlperf_exp.files import write_json

    config = OmegaConf.to_object(cfg)
    assert isinstance(config, DoctorConfig)
    folder = Path(HydraConfig.get().runtime.output_dir).absolute()
    checks = examine(config, folder)
    if checks is None:  # the first process has the report
        return {}
    report = as_json(config.hw, checks)
    write_json(folder / "doctor.json", report)
    if config.json:
        sys.stdout.write((folder / "doctor.json").read_text(encoding="utf-8"))
    else:
        show(config.hw, checks)
    if bad := failed(checks):
        raise RunFailed(f"{config.hw.name}: {len(bad)} of {len(checks)} checks failed: {names(bad)}")
    return report


def arguments(words: Sequence[str]) -> list[str]:
    """The command line for Hydra: ``--json`` is a key, and a launcher runs the doctor on each node."""
    given = [word for word in words if word != "--json"]
    if len(given) < len(words):
        given.append("json=true")
    elsewhere = any(word.startswith("hydra/launcher=") and word not in _HERE for word in given)
    if elsewhere and not any(word.startswith("hydra.launcher.run_on=") for word in given):
        given.append("hydra.launcher.run_on=each")
    return given


def main() -> NoReturn:
    """Run the command line."""
    sys.argv[1:] = arguments(sys.argv[1:])
    serve("doctor", task)


if __name__ == "__main__":
    main()

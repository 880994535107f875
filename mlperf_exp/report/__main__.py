"""``python -m mlperf_exp.report RUN_DIR``: makes a run's report again from what lies in its folder."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from mlperf_exp.errors import ExperimentError, UserError
from mlperf_exp.report import write_report

_SIGNS_OF_A_RUN = ("result.json", "live.jsonl", "config.yaml", "performance", "accuracy", ".hydra")


def main(arguments: list[str] | None = None) -> int:
    """Rebuild the report of the folders given; returns the exit status (2: no run folder, 1: cannot be written)."""
    parser = argparse.ArgumentParser(prog="python -m mlperf_exp.report", description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the folder of a run, finished or not")
    run_dir: Path = parser.parse_args(arguments).run_dir
    try:
        result = load_result(run_dir)
        for path in write_report(run_dir, result):
            print(path)
    except ExperimentError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"RUN_DIR: the report cannot be written: {error}", file=sys.stderr)
        return 1
    return 0


def load_result(run_dir: Path) -> dict[str, Any]:
    """``result.json`` of a run folder; what is known without it, where the run died before it was written.

    Raises:
        UserError: ``run_dir`` is no folder of a run.
    """
    if not run_dir.is_dir() or not any((run_dir / sign).exists() for sign in _SIGNS_OF_A_RUN):
        raise UserError("RUN_DIR", f"{run_dir} is not the folder of a run", "Name one that holds a result.json.")
    try:
        result = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
        if isinstance(result, dict):
            return result
    except (OSError, ValueError):
        pass  # the page says that there is no result
    return {"run": {"name": run_dir.resolve().name}, "plan": {"config": _config(run_dir)}}


def _config(run_dir: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


if __name__ == "__main__":
    sys.exit(main())

"""Run again what a run's folder records: the same command with the same pins, and what differs from it here.

``python -m mlperf_exp.replay RUN_DIR`` prints the commands that rebuild the environment and repeat the run, and on
stderr a warning for each difference between then and now: configuration, packages, driver, GPUs, environment
variables, commit. With ``--run`` it runs the command, into a new folder, and says whether the same engine answered the
same plan.

Exit status: 0 printed; 2 where the folder holds no run; with ``--run`` that of the run.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlperf_exp import environment
from mlperf_exp.errors import ExperimentError, UserError

_OF_THE_FOLDER = ("hydra.run.dir=", "hydra.sweep.dir=", "hydra/launcher=")


def recorded(run_dir: Path) -> dict[str, Any]:
    """The record of the run in ``run_dir``.

    Raises:
        UserError: there is none, or it does not say what was run.
    """
    remedy = "Give the folder of a run, such as outputs/runs/NAME"
    path = run_dir / "result.json"
    try:
        result = json.loads(path.read_text())
    except OSError as error:
        raise UserError("RUN_DIR", f"{path}: {error.strerror}", remedy) from None
    except (ValueError, RecursionError):
        raise UserError("RUN_DIR", f"{path} is no JSON", remedy) from None
    run = result.get("run") if isinstance(result, dict) else None
    if not isinstance(run, dict) or not isinstance(run.get("overrides"), list) or run.get("foreign"):
        raise UserError("RUN_DIR", f"{path} does not record a command of this program", remedy)
    return dict(result)


def words(result: Mapping[str, Any]) -> list[str]:
    """The settings of the run (of its own job, in a sweep), without the folder that it wrote to."""
    return [str(word) for word in result["run"]["overrides"] if not str(word).startswith(_OF_THE_FOLDER)]


def differences(result: Mapping[str, Any], run_dir: Path) -> list[str]:
    """One line for each thing that is not here as it was then."""
    from mlperf_exp.compare.runs import facts

    now: dict[str, Any] = {"plan": {"config": _composed(words(result))}, "environment": environment.describe()}
    then = {**result, "plan": {"config": (result.get("plan") or {}).get("config")}}
    before, after = facts(then), facts(now)
    pins = run_dir / environment.PINS
    if pins.exists():
        before = {k: v for k, v in before.items() if not k.startswith("package ")} | _packages(pins.read_text())
        after = {k: v for k, v in after.items() if not k.startswith("package ")} | _packages(environment.requirements())
    keys = dict.fromkeys([*before, *after])
    said = "{key}: {then} then, {now} now"
    return [
        said.format(key=key, then=before.get(key, "none"), now=after.get(key, "none"))
        for key in keys
        if before.get(key) != after.get(key)
    ]


def rebuild(result: Mapping[str, Any], run_dir: Path) -> list[str]:
    """The shell's lines that make the environment as it was: the commit, the packages, the variables, the folder."""
    recorded = result.get("environment") or {}
    lines = []
    commit = str(recorded.get("git_commit") or "")
    if commit:
        lines.append(f"git checkout {shlex.quote(commit.removesuffix('+changes'))}")
    if commit.endswith("+changes"):
        lines.append("# files had been changed since that commit: the record does not hold how")
    if (run_dir / environment.PINS).exists():
        lines.append(f"python -m pip install -r {shlex.quote(str(run_dir / environment.PINS))}")
    lines += [f"export {key}={shlex.quote(str(value))}" for key, value in (recorded.get("variables") or {}).items()]
    if result["run"].get("cwd"):
        lines.append(f"cd {shlex.quote(str(result['run']['cwd']))}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Print, or run; see the module."""
    parser = argparse.ArgumentParser("python -m mlperf_exp.replay", description="Repeat a run with the same pins.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--run", action="store_true", help="run it here, into a new folder")
    options = parser.parse_args(arguments)
    run_dir: Path = options.run_dir.absolute()
    try:
        result = recorded(run_dir)
        different = differences(result, run_dir)
    except ExperimentError as error:
        print(f"mlperf_exp: {error}", file=sys.stderr)
        return error.exit_status
    for line in different:
        print(f"differs: {line}", file=sys.stderr)
    command = ["python", "-m", "mlperf_exp", *words(result)]
    if not options.run:
        print("\n".join([*rebuild(result, run_dir), shlex.join(command)]))
        return 0
    return _repeat(result, run_dir, command)


def _repeat(result: Mapping[str, Any], run_dir: Path, command: Sequence[str]) -> int:
    """Run the command beside the first run's folder; say whether it was the same engine and plan."""
    run = result["run"]
    place = next(path for i in range(1, 1000) if not (path := run_dir.with_name(f"{run_dir.name}-replay{i}")).exists())
    folder = run.get("cwd") if Path(str(run.get("cwd"))).is_dir() else None
    done = subprocess.run([sys.executable, *command[1:], f"hydra.run.dir='{place}'"], cwd=folder, check=False)
    try:
        again = json.loads((place / "result.json").read_text())["run"]
    except (OSError, ValueError, KeyError):
        return done.returncode  # refused or killed: it said why
    for key, what in (("engine_hash", "engine"), ("plan_hash", "plan")):
        same = "the same" if again.get(key) == run.get(key) else "ANOTHER"
        print(f"{same} {what} as {run_dir.name} ({key} {again.get(key)}, then {run.get(key)})")
    return done.returncode


def _composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration that these settings give now, as a run records it."""
    from hydra import compose, initialize_config_dir

    from mlperf_exp import cli
    from mlperf_exp.plan import make_plan
    from mlperf_exp.run import plain

    cli.register()
    try:
        with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
            composed = compose("config", [word for word in overrides if not word.lstrip("+~").startswith("hydra")])
    except Exception as error:  # Hydra's many kinds: what was composed then cannot be composed now
        raise UserError("RUN_DIR", cli.explain(error), "Check out the commit that the run records") from None
    return plain(make_plan(composed, Path("replay")).config)


def _packages(text: str) -> dict[str, str]:
    pairs = (line.split("==", 1) for line in text.splitlines() if "==" in line and not line.startswith("#"))
    return {f"package {name}": version for name, version in pairs}


if __name__ == "__main__":
    sys.exit(main())

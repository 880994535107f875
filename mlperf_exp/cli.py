"""The command line: Hydra composes, the run runs, and every error that a user can cause ends in one line.

Exit status: 0 finished, 1 failed, 2 the user's mistake, 3 finished and invalid with ``fail_on_invalid``, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import secrets
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlperf_exp import config
from mlperf_exp.errors import ExperimentError, Interrupted


def conf_dir() -> Path:
    """Where the configuration files are: beside the package in a checkout, inside it when installed."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def register() -> None:
    """Make the schemas and the resolver ``${unique:}`` (a name for a new folder) known to Hydra."""
    config.register()
    OmegaConf.register_new_resolver(
        "unique", lambda: f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}", use_cache=True, replace=True
    )


def task(cfg: DictConfig) -> dict[str, object]:
    """One job: what Hydra calls with the composed configuration."""
    from mlperf_exp.run import run

    return run(cfg)


def main() -> NoReturn:
    """Run the command line and end the process with its exit status."""
    register()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands errors over instead of printing and exiting
    leave(_status(lambda: hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()))


def _status(call: object) -> int:
    try:
        call()  # type: ignore[operator]
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return _say("interrupted", Interrupted.exit_status)
    except ExperimentError as error:
        return _say(str(error), error.exit_status)
    except (HydraException, OmegaConfBaseException) as error:
        return _say(explain(error), 2)
    except Exception as error:
        traceback.print_exc()
        return _say(f"{type(error).__name__}: {error}", 1)


def _say(text: str, status: int) -> int:
    try:
        print("mlperf_exp: " + " ".join(text.split()), file=sys.stderr)
    except OSError:  # the terminal is gone; the status still counts
        pass
    return status


def explain(error: BaseException) -> str:
    """One line for an error of composition: the key, what is wrong with it, and what is allowed."""
    cause = error
    while cause.__cause__ is not None and not getattr(cause, "full_key", None):
        cause = cause.__cause__
    key = getattr(cause, "full_key", None)
    text = str(error)
    if key and "is not in struct" in str(cause) or "not in '" in str(cause):
        owner = getattr(cause, "object_type", None)
        allowed = [f.name for f in dataclasses.fields(owner)] if dataclasses.is_dataclass(owner) else []
        return f"{key}: there is no such key. Allowed here: {', '.join(allowed)}{_near(str(key).split('.')[-1], allowed)}"
    if key and isinstance(cause, OmegaConfBaseException):
        reason = str(cause).split("\n", 1)[0]
        expected = re.search(r"expected one of \[(.*?)\]", reason)
        remedy = f"Allowed: {expected.group(1)}" if expected else "See the key's type in mlperf_exp/config.py"
        if "Missing mandatory value" in reason:
            return f"{key}: must be given. Add it to the command: {key}=..."
        return f"{key}: {reason}. {remedy}"
    missing = re.search(r"Could not find '([^/']+)/([^']+)'", text)
    if missing:
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        group, option = missing.groups()
        return f"{group}: there is no '{option}'. Allowed: {', '.join(options)}{_near(option, options)}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        groups = [f.name for f in dataclasses.fields(config.Config)] + ["experiment", "tuning"]
        name = unknown.group(1)
        return f"{name}: there is no such key. Allowed here: {', '.join(groups)}{_near(name, groups)}"
    return text.split("\nSee https", 1)[0]


def _near(name: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(name, allowed, n=1)
    return f". Did you mean {near[0]}?" if near else ""


def leave(status: int) -> NoReturn:
    """End the process; at once where a test is still inside LoadGen, which cannot be stopped."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            pass
    loadgen = sys.modules.get("mlperf_exp.loadgen")
    if loadgen is not None and loadgen.abandoned():
        os._exit(status)
    sys.exit(status)

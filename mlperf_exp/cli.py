"""The command line: Hydra composes, the run runs, and every error that a user can cause ends in one line.

Exit status: 0 finished, 1 failed, 2 the user's mistake, 3 finished and invalid with ``fail_on_invalid``, 130
interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import logging
import os
import re
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlperf_exp import config
from mlperf_exp.credentials import has_credentials
from mlperf_exp.errors import ExperimentError, Interrupted, RunFailed, UserError

_ended_by: list[Exception] = []
_REMEDIES = {  # a word of OmegaConf's reason -> the remedy
    "could not be converted to Float": "Give a number",
    "could not be converted to Integer": "Give a whole number",
    "not a valid bool": "Give true or false",
    "not a ListConfig": "Give a list: {key}=[...]",
    "does not support deletion": "Set another value, or null where the key allows it",
    "Interpolation key": "Give a value, or the name of a key that there is",
}
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


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

    def work(cfg: DictConfig) -> dict[str, object]:
        from mlperf_exp.run import run

        return run(cfg)

    return one_job(work, cfg)


def one_job(work: Callable[[DictConfig], dict[str, object]], cfg: DictConfig) -> dict[str, object]:
    """Do a job's work.

    The error of a single run is kept for :func:`serve` instead of raised: Hydra would first print a line of its own.
    """
    try:
        return work(cfg)
    except Exception as error:
        if HydraConfig.get().mode is not RunMode.RUN:
            raise
        with contextlib.suppress(OSError):  # refused before anything was written: leave no empty folder
            Path(HydraConfig.get().runtime.output_dir).rmdir()
        _ended_by.append(error)
        return {}


def main() -> NoReturn:
    """Run the command line and end the process with its exit status."""
    serve("config", task)


def serve(config_name: str, function: Callable[[DictConfig], dict[str, object]]) -> NoReturn:
    """Run an application of Hydra on the configurations in ``conf/`` and end the process with its exit status."""
    register()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors over instead of printing and exiting
    logging.raiseExceptions = False  # a log that cannot be written (full disk) must not print tracebacks
    leave(_status(partial(_hydra, config_name, function)))


def _hydra(config_name: str, function: Callable[[DictConfig], dict[str, object]]) -> None:
    refuse_secrets(sys.argv[1:])
    _refuse_nothing(sys.argv[1:])
    _refuse_flags(sys.argv[1:])
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(function)()
    if _ended_by:
        raise _ended_by[0]


def refuse_secrets(words: Sequence[str]) -> None:
    """Refuse credentials on the command line before Hydra writes it down anywhere.

    Raises:
        UserError: naming the key, without the value.
    """
    for word in words:
        key, _, value = word.partition("=")
        if has_credentials(value):
            raise UserError(
                key.lstrip("+~"),
                "must not hold a user name or password: it would be recorded with the run",
                "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or what backend.api_key_env names",
            )


def _refuse_nothing(words: Sequence[str]) -> None:
    """Refuse ``~model``, ``model=``, ``model=null``, several launchers and swept keys of one: Hydra says little."""
    for word in words:
        match = re.fullmatch(r"~?(model|dataset|hw|scenario|backend)(?:=(?:null)?)?", word)
        if match:
            options = ", ".join(sorted(path.stem for path in (conf_dir() / match[1]).glob("*.yaml")))
            raise UserError(match[1], "a run needs one", f"Allowed: {options}")
        launchers = word.removeprefix("hydra/launcher=").split(",")
        if word.startswith("hydra/launcher=") and len(launchers) > 1:
            raise UserError(
                "hydra/launcher",
                f"{','.join(launchers)}: a sweep has one launcher",
                f"Run a command for each: python -m mlperf_exp -m hydra/launcher={launchers[0]} ...",
            )
        several = re.fullmatch(r"(hydra\.launcher\.[\w.]+)=([^\[{('\",]+),.*", word)
        if several:
            raise UserError(
                several[1],
                f"{word.partition('=')[2]}: it belongs to the launcher, and a sweep has one launcher",
                f"Run a command for each: python -m mlperf_exp -m {several[1]}={several[2]} ...",
            )


def _refuse_flags(words: Sequence[str]) -> None:
    """Refuse what Hydra's parser would answer with a page of usage: unknown flags, and flags amid KEY=VALUE."""
    _, unknown = get_args_parser().parse_known_args(list(words))
    if unknown and unknown[0].startswith("-"):
        raise UserError(unknown[0], "there is no such flag", "See python -m mlperf_exp --help")
    if unknown:
        raise UserError(
            unknown[0], "a flag stands between the settings", "Write flags (such as -m) before all KEY=VALUE"
        )


def _status(call: Callable[[], None]) -> int:
    try:
        call()
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
        unwritable = _unwritable(error)
        if unwritable is not None:
            return _say(str(unwritable), unwritable.exit_status)
        traceback.print_exc()
        return _say(f"{type(error).__name__}: {error}", 1)


def _unwritable(error: BaseException) -> ExperimentError | None:
    """The user's error in a file that could not be opened or written, wherever in Hydra or the run that was."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and (cause.filename or cause.errno in _DISK_FULL)):
        cause = cause.__cause__ or cause.__context__
    if not isinstance(cause, OSError):
        return None
    if cause.errno in _DISK_FULL:
        where = cause.filename or "a file of the run"
        return RunFailed(f"{where}: {cause.strerror}. Make room, or choose another disk: hydra.run.dir=FOLDER")
    problem = f"{cause.filename}: {cause.strerror}"
    return UserError("hydra.run.dir", problem, "Give a folder that can be written: hydra.run.dir=FOLDER")


def _say(text: str, status: int) -> int:
    with contextlib.suppress(OSError):  # the terminal may be gone; the status still counts
        print("mlperf_exp: " + " ".join(text.split()), file=sys.stderr)
    return status


def explain(error: BaseException) -> str:
    """One line for an error of composition: the key, what is wrong with it, and what is allowed."""
    if isinstance(error, OverrideParseException):
        reason = str(error).split("\n", 1)[0].replace(" at '<EOF>'", "")
        return f"{error.override}: {reason}. Write KEY=VALUE, and quote a value with special characters: 'key=\"a, b\"'"
    cause = error
    while cause.__cause__ is not None and not getattr(cause, "full_key", None):
        cause = cause.__cause__
    key = getattr(cause, "full_key", None)
    text = str(error)
    if key and ("is not in struct" in str(cause) or "not in '" in str(cause)):
        owner = getattr(cause, "object_type", None)
        if dataclasses.is_dataclass(owner):
            allowed = [f.name for f in dataclasses.fields(owner)]
        else:
            allowed = [str(name) for name in getattr(cause, "parent_node", None) or ()]
        here = f"Allowed here: {', '.join(allowed)}" if allowed else f"Add it with a plus sign: +{key}=..."
        return f"{key}: there is no such key. {here}{_near(str(key).split('.')[-1], allowed)}"
    if key and isinstance(cause, OmegaConfBaseException):
        reason = str(cause).split("\n", 1)[0].rstrip(".")
        if "Missing mandatory value" in reason:
            return f"{key}: must be given. Add it to the command: {key}=..."
        return f"{key}: {reason}. {_remedy(str(key), reason)}"
    there = re.search(r"An item is already at '([^']+)'", text)
    if there:
        return f"{there.group(1)}: is there already. Leave out the plus sign: {there.group(1)}=..."
    missing = re.search(r"Could not find '(.+)/([^/']+)'", text)
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


def _remedy(key: str, reason: str) -> str:
    """What to give instead, by what OmegaConf says of a value that it did not take."""
    expected = re.search(r"expected one of \[(.*?)\]", reason)
    if expected:
        return f"Allowed: {expected.group(1)}"
    for word, remedy in _REMEDIES.items():
        if word in reason:
            return remedy.format(key=key)
    return "See the key's type in mlperf_exp/config.py"


def _near(name: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(name, allowed, n=1)
    return f". Did you mean {near[0]}?" if near else ""


def leave(status: int) -> NoReturn:
    """End the process; at once where a test is still inside LoadGen, which cannot be stopped.

    At once also after vLLM or PyTorch: what they ran is stopped by now, and libraries would fill the terminal with
    complaints about each other's leaks.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # nobody reads any more: what is left goes nowhere, or Python would make the status 120
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    loadgen = sys.modules.get("mlperf_exp.loadgen")
    if "vllm" in sys.modules or "torch" in sys.modules or (loadgen is not None and loadgen.abandoned()):
        os._exit(status)
    sys.exit(status)

"""One job of a sweep, and how it travels to the process that runs it and back.

A job leaves dotted files in its folder while it runs, and takes them away at its end: ``.job_N.pkl`` (what to run) and
``.job_N.return.pkl`` (what came of it, written aside and moved). Where its output does not go straight to the
terminal, ``.job_N.log`` holds it and stays.
"""

from __future__ import annotations

import copy
import pickle
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, env_override, filter_overrides
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from mlperf_exp.errors import ExperimentError, RunFailed, UserError
from mlperf_exp.files import write_atomic


@dataclass(frozen=True, slots=True)
class Job:
    """A composed job. ``folder`` is absolute, and exists."""

    number: int
    overrides: tuple[str, ...]
    config: DictConfig
    folder: Path
    group: str | None = None  # jobs of one group can share an engine, and so a process; None: with no other

    @property
    def request(self) -> Path:
        """What the process is to run."""
        return self.folder / f".job_{self.number}.pkl"

    @property
    def answer(self) -> Path:
        """What came of it; only there when it is whole."""
        return self.folder / f".job_{self.number}.return.pkl"

    @property
    def log(self) -> Path:
        """What the process printed, where that is kept."""
        return self.folder / f".job_{self.number}.log"


@dataclass(frozen=True, slots=True)
class Request:
    """What a job's process reads. The pickles are opened once ``sys_path`` holds, so that their modules are found."""

    sys_path: list[str]
    argv: list[str]
    shared: bytes  # (state of Hydra's singletons, task function, Hydra's context), the same for all jobs of a sweep
    config: bytes
    grace_s: float
    answer: Path
    log: Path | None  # what the job prints goes there; None: where it goes already
    another: bool  # a job that can use the same engine will follow


class JobLost(RunFailed):
    """A job's process ended without a result: killed by a signal, or by an exit that nothing could catch.

    The last lines of its log are in ``tail`` and, for tracebacks, in the exception's note.
    """

    def __init__(self, number: int, overrides: Sequence[str], how: str, tail: Sequence[str]) -> None:
        named = f" ({describe(overrides)})" if overrides else ""
        super().__init__(f"job {number}{named} {how}, and left no result")
        self.number, self.overrides, self.how, self.tail = number, tuple(overrides), how, tuple(tail)
        self.add_note("\n".join(["Last lines of its log:", *tail]) if tail else "Its log holds nothing.")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.number, self.overrides, self.how, self.tail)


def describe(overrides: Sequence[str]) -> str:
    """The overrides on one line, control characters escaped."""
    return " ".join("".join(c if c.isprintable() else repr(c)[1:-1] for c in text) for text in overrides)


def compose(
    config: DictConfig, context: HydraContext, overrides: Sequence[str], number: int, env: dict[str, str]
) -> Job:
    """The job's own configuration, and its folder, which is made.

    Raises:
        HydraException, OmegaConfBaseException: it does not compose.
        UserError: the folder cannot be made.
    """
    job = prepare(config, context, overrides, number, env)
    make_folder(job)
    return job


def prepare(
    config: DictConfig, context: HydraContext, overrides: Sequence[str], number: int, env: dict[str, str]
) -> Job:
    """The job's own configuration, and the name of its folder, which is not made yet.

    Raises:
        HydraException, OmegaConfBaseException: it does not compose.
    """
    composed = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.id = str(number)
        composed.hydra.job.num = number
    before = HydraConfig.instance().cfg
    OmegaConf.set_readonly(composed.hydra, True)
    # what ${hydra:} looks into; set_config would copy it, at 5 ms a job
    HydraConfig.instance().cfg = composed  # type: ignore[assignment]
    try:
        with env_override(env):
            folder = Path(str(composed.hydra.sweep.dir), str(composed.hydra.sweep.subdir)).absolute()
    finally:
        HydraConfig.instance().cfg = before
    return placed(Job(number, tuple(filter_overrides(overrides)), composed, folder), folder)


def placed(job: Job, folder: Path) -> Job:
    """The job in another folder beside its own."""
    with read_write(job.config.hydra), open_dict(job.config.hydra):
        job.config.hydra.runtime.output_dir = str(folder)
        if folder != job.folder:
            job.config.hydra.sweep.subdir = str(Path(str(job.config.hydra.sweep.subdir)).parent / folder.name)
    return replace(job, folder=folder)


def make_folder(job: Job) -> None:
    """Make the job's folder.

    Raises:
        UserError: it cannot be made.
    """
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            "hydra.sweep.subdir", f"cannot make {job.folder}: {error.strerror}", "Name a folder that can be written to"
        ) from error


def pack_shared(task_function: TaskFunction, context: HydraContext) -> bytes:
    """What all jobs of a sweep have in common; plain pickle cannot do functions of ``__main__``, nor resolvers."""
    return bytes(cloudpickle.dumps((Singleton.get_state(), task_function, context)))


def write_request(job: Job, shared: bytes, grace_s: float, log: Path | None, another: bool) -> None:
    """Write what the job's process is to run; see :class:`Request`.

    Raises:
        OSError: the folder cannot be written to.
    """
    request = Request(
        [str(Path(entry).absolute()) for entry in sys.path],
        sys.argv,
        shared,
        cloudpickle.dumps(job.config),
        grace_s,
        job.answer,
        log,
        another,
    )
    write_atomic(job.request, pickle.dumps(request))


def encode(outcome: JobReturn | Exception) -> bytes:
    """The outcome as bytes of which it is known that they can be read again."""
    error = outcome if isinstance(outcome, Exception) else error_of(outcome)
    if error is not None and not isinstance(error, ExperimentError):
        error.add_note("In the job's process:\n" + "".join(traceback.format_exception(error)).rstrip())
    try:
        data = bytes(cloudpickle.dumps(outcome))
        pickle.loads(data)
        return data
    except Exception as problem:  # whatever a stranger's __reduce__ or __init__ may raise
        if error is None:
            text = f"the job finished, but its return value cannot be pickled: {type(problem).__name__}: {problem}"
        else:
            text = f"{type(error).__name__}: {error}"
        stand_in = RunFailed(text)
        for note in getattr(error, "__notes__", ()):
            stand_in.add_note(note)
        return bytes(cloudpickle.dumps(stand_in))


def read_answer(job: Job) -> JobReturn | None:
    """What came of the job; None where its process left nothing."""
    try:
        outcome = pickle.loads(job.answer.read_bytes())
    except FileNotFoundError:
        return None
    except Exception as problem:  # a class that only the job's process could import, a full disk
        return failed(job, RunFailed(f"the job's result cannot be read: {type(problem).__name__}: {problem}"))
    return outcome if isinstance(outcome, JobReturn) else failed(job, outcome)


def failed(job: Job, error: Exception) -> JobReturn:
    """The result of a job that has none of its own."""
    task = copy.deepcopy(job.config)
    with read_write(task), open_dict(task):
        del task["hydra"]
    hydra = OmegaConf.masked_copy(job.config, "hydra")
    result = JobReturn(list(job.overrides), task, hydra, str(Path.cwd()), JobRuntime.instance().get("name"))
    result.status, result.return_value = JobStatus.FAILED, error
    return result


def not_composed(overrides: Sequence[str], error: Exception) -> JobReturn:
    """The result of a job that has no configuration: it did not compose, or was never started."""
    result = JobReturn(list(filter_overrides(overrides)), task_name=JobRuntime.instance().get("name"))
    result.status, result.return_value = JobStatus.FAILED, error
    return result


def error_of(result: JobReturn) -> Exception | None:
    """The exception inside a failed result; ``return_value`` would print and raise it."""
    return result._return_value if result.status is JobStatus.FAILED else None


def tail(job: Job, lines: int = 20) -> list[str]:
    """The last lines of what the job printed or, where that went to the terminal, of what it logged."""
    for path in [job.log, *_logged(job)]:
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 64 * 1024))
                found = file.read().decode(errors="replace").splitlines()[-lines:]
        except OSError:
            continue
        if found:
            return found
    return []


def _logged(job: Job) -> list[Path]:
    """The files that the job's configuration logs to."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(job.config)
    try:
        logging: Any = OmegaConf.to_container(job.config.hydra.job_logging, resolve=True)
        return [job.folder / handler["filename"] for handler in logging["handlers"].values() if "filename" in handler]
    except Exception:  # a tail is a service, not a condition
        return []
    finally:
        HydraConfig.instance().cfg = before

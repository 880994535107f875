"""The few kinds of error that a run can end with; each carries its exit status.

ExperimentError
├── UserError        2    the user's mistake: the key, what is wrong, the remedy
├── RunFailed        1    the run broke; what was finished is on disk
├── InvalidResult    3    finished, not valid, and ``fail_on_invalid=true``
└── Interrupted    130    Ctrl-C or SIGTERM; what was finished is on disk
"""

from __future__ import annotations


class ExperimentError(Exception):
    """Base of all errors that end with one line instead of a traceback."""

    exit_status = 1


class UserError(ExperimentError):
    """Something that the user asked for cannot be done.

    Args:
        key: the configuration key at fault, such as ``scenario.target_qps``.
        problem: what is wrong with it, with the offending value.
        remedy: what to do instead, as an imperative sentence.
    """

    exit_status = 2

    def __init__(self, key: str, problem: str, remedy: str) -> None:
        super().__init__(f"{key}: {problem}. {remedy}")
        self.key, self.problem, self.remedy = key, problem, remedy

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        return type(self), (self.key, self.problem, self.remedy)


class RunFailed(ExperimentError):
    """The run broke after it had started: a dead engine, a full disk."""

    exit_status = 1


class InvalidResult(ExperimentError):
    """The run finished, its verdict is not valid, and ``fail_on_invalid`` is set."""

    exit_status = 3


class Interrupted(ExperimentError):
    """The run was interrupted by a signal."""

    exit_status = 130


def missing_extra(package: str, wanted_by: str, extra: str) -> UserError:
    """The error for an optional package that is not installed."""
    return UserError(
        wanted_by,
        f"needs the package {package}, which is not installed",
        f'Run: pip install "mlperf-exp[{extra}]"',
    )

"""What Slurm says of jobs, and their end: for each launcher that puts jobs into its queue.

Of a heterogeneous job, whose parts are ``51+0`` and ``51+1``, the number of the whole is 51.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Collection, Sequence

from hydra_plugins.mlperf_launchers._cluster import Kind, State, Unreachable

from mlperf_exp.errors import UserError

_ANSWER_S = 30.0
_KINDS = {
    **dict.fromkeys(
        ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"), Kind.queued
    ),
    **dict.fromkeys(
        ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"), Kind.running
    ),
    "COMPLETED": Kind.succeeded,
    **dict.fromkeys(("FAILED", "OUT_OF_MEMORY"), Kind.failed),
    **dict.fromkeys(("CANCELLED", "REVOKED"), Kind.cancelled),
    "PREEMPTED": Kind.preempted,
    **dict.fromkeys(("NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED"), Kind.lost),
    **dict.fromkeys(("TIMEOUT", "DEADLINE"), Kind.timeout),
}
_TELLING = (  # of a job's parts, the first of these tells of the whole
    Kind.running, Kind.queued, Kind.unknown, Kind.lost, Kind.preempted, Kind.timeout, Kind.failed, Kind.cancelled,
    Kind.succeeded,
)  # fmt: skip
# Why a job waits that will never start, whatever else ends.
_FATAL = ("BadConstraints", "InvalidAccount", "InvalidQOS", "PartitionNodeLimit", "PartitionTimeLimit",
          "DependencyNeverSatisfied", "AccountNotAllowed", "QOSNotAllowed")  # fmt: skip
_SILENT = re.compile(
    "contact slurm|timed out|connection refused|connect failure|communication|not responding|zero bytes|"
    "slurm backup controller|sending/receiving|cannot resolve|dbd_conn|transport",
    re.IGNORECASE,
)


def named(name: str) -> str | None:
    """The number of the job of this name; None: there is none.

    Raises:
        Unreachable: Slurm does not answer.
    """
    # sacct learns of a job a moment later than squeue.
    for command in (
        ["squeue", "--noheader", "--states=all", "--format=%A", f"--name={name}"],
        ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobIDRaw", f"--name={name}",
         "--starttime=now-30days"],
    ):  # fmt: skip
        found = asked(*command).split()
        if found:
            return found[0]
    return None


def states(ids: Collection[str]) -> dict[str, State]:
    """From the controller, and for what it has forgotten or does not answer, from the accounting.

    Raises:
        Unreachable: neither answers.
    """
    silent: Unreachable | None = None
    chosen = ",".join(sorted(ids))
    parts: dict[str, list[State]] = defaultdict(list)
    try:
        lines = asked("squeue", "--noheader", "--states=all", "--format=%i|%T|%N|%r", f"--jobs={chosen}", known=False)
        for line in lines.splitlines():
            part, word, nodes, reason = line.split("|", 3)
            parts[part.partition("+")[0]].append(_state(word, reason, None, nodes))
    except Unreachable as error:
        silent = error
    found = {number: _whole(told) for number, told in parts.items()}
    open_ids = {number for number in ids if number not in found or found[number].kind.ended}
    if not open_ids:
        return found
    parts.clear()
    try:
        lines = asked("sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={','.join(sorted(open_ids))}",
                      "--format=JobID,State,ExitCode,NodeList,Reason")  # fmt: skip
        for line in lines.splitlines():
            part, word, code, nodes, reason = line.split("|", 4)
            parts[part.partition("+")[0]].append(_state(word, reason, code, nodes))
    except Unreachable:
        if silent is not None:
            raise silent from None
    for number, told in parts.items():
        whole = _whole(told)
        if number not in found or whole.kind.ended:
            found[number] = whole
    return found


def cancel(number: str) -> None:
    """``scancel``: SIGTERM, and SIGKILL after the cluster's KillWait; a job that is gone is no error.

    Raises:
        Unreachable: it was not cancelled.
    """
    done = run("scancel", number)
    if done.returncode and "invalid job id" not in done.stderr.lower():
        raise Unreachable(said(done))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands.

    Raises:
        UserError: it is not installed.
        Unreachable: it did not answer.
    """
    # Where this runs inside a job (an interactive session), that job's variables would be taken for options.
    env = {name: value for name, value in os.environ.items() if not re.match(r"SLURM_(?!CONF)|SBATCH_|SRUN_", name)}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_ANSWER_S, env=env, errors="replace",
                              stdin=subprocess.DEVNULL)  # fmt: skip
    except FileNotFoundError:
        remedy = "Run this on a machine of the cluster, a login node for instance"
        raise UserError(
            "hydra/launcher", f"{words[0]} is not installed here, so Slurm cannot be reached", remedy
        ) from None
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{words[0]} did not answer within {_ANSWER_S:g} s") from None
    if done.returncode and _SILENT.search(done.stderr):
        raise Unreachable(said(done))
    return done


def asked(*words: str, known: bool = True) -> str:
    """What a command says; with ``known=False`` an unknown job is no answer and no error.

    Raises:
        Unreachable: it failed.
    """
    done = run(*words)
    if done.returncode and (known or "invalid job id" not in done.stderr.lower()):
        raise Unreachable(said(done))
    return done.stdout


def said(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that failed says, in one line."""
    text = " ".join((done.stderr or done.stdout).split())
    text = re.sub(r"\b(sbatch|squeue|sacct|scancel|sinfo|scontrol|allocation failure): (error: )?", "", text)
    return text or f"{done.args[0]} ended with status {done.returncode}"


def _state(word: str, reason: str, code: str | None, nodes: str) -> State:
    state = word.split()[0].rstrip("+") if word else ""
    kind = _KINDS.get(state, Kind.unknown)
    why = "" if reason in ("None", "") else reason
    if kind is Kind.queued and "launch failed" in reason:
        kind = Kind.lost
    status, _, killed = (code or "").partition(":")
    exit_code = None
    if kind.ended and status.isdigit():
        exit_code = int(status) or (128 + int(killed) if killed.isdigit() and int(killed) else 0)
    if state in ("OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL", "NODE_FAIL"):
        why = why or state
    named = () if nodes in ("", "None assigned", "(null)") else (nodes,)
    fatal = kind is Kind.queued and reason.strip("()") in _FATAL
    return State(kind, why, exit_code, named, fatal)


def _whole(parts: Sequence[State]) -> State:
    """A job of several parts runs until the last of them ends; a machine's fault is why the others failed."""
    if len(parts) == 1:
        return parts[0]
    told = min(parts, key=lambda part: _TELLING.index(part.kind))
    nodes = tuple(node for part in parts for node in part.nodes)
    return State(told.kind, told.reason, told.exit_code, nodes, told.fatal)

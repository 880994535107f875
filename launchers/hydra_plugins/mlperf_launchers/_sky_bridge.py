"""Speaks with SkyPilot in SkyPilot's own Python: run by path, by another interpreter than the rest of the package.

SkyPilot's pinned dependencies do not fit beside vLLM's and MLflow's, so it has an environment of its own. This file
imports nothing of the project. It reads a question a line on standard input and answers on standard output, both JSON:

    {"id": 1, "call": "state", "cluster": "...", "request": "..."}   ->   {"id": 1, "value": {...}}
                                                                      or   {"id": 1, "error": "...", "kind": "refused"}

``logs`` answers many times, the last time with a value. ``kind`` is ``refused`` (asking again is of no use), ``lost``
(there is no such cluster) or ``silent`` (the API server does not answer).
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


class Bridge:
    """One SkyPilot client; its methods named in ``CALLS`` are what can be asked."""

    CALLS = ("hello", "validate", "fits", "launch", "state", "logs", "cancel", "find", "down", "ssh")

    def __init__(self, out: Any) -> None:
        import sky
        from sky import exceptions
        from sky.client import sdk

        self._sky, self._exceptions, self._sdk = sky, exceptions, sdk
        self._out, self._lock = out, threading.Lock()
        self._jobs: dict[str, int] = {}  # by the launch's request

    def answer(self, question: dict[str, Any]) -> None:
        """Do what is asked; whatever goes wrong is an answer too."""
        number, call = question.pop("id"), question.pop("call")
        try:
            assert call in self.CALLS
            if call == "logs":
                question["number"] = number
            value = getattr(self, call)(**question)
        except (Exception, SystemExit) as error:
            self._say({"id": number, "error": _told(error), "kind": self._kind(error)})
        else:
            self._say({"id": number, "value": value})

    def hello(self) -> str:
        """SkyPilot's version; starts the API server if there is none."""
        self._sdk.api_info()
        return str(self._sky.__version__)

    def validate(self, task: str) -> dict[str, Any]:
        """The task as SkyPilot understands it."""
        config = self._task(task, []).to_yaml_config()
        return {key: value for key, value in config.items() if not key.startswith("_")}

    def fits(self, task: str, secrets: list[str]) -> None:
        """Whether some cloud that is set up offers what the task wants."""
        self._sdk.get(self._sdk.launch(self._task(task, secrets), dryrun=True))

    def launch(self, task: str, cluster: str, secrets: list[str], idle_minutes: int | None) -> str:
        """Begin to provision and run; the request's name."""
        options: dict[str, Any] = {"cluster_name": cluster}
        if idle_minutes is not None:
            options |= {"idle_minutes_to_autostop": idle_minutes, "down": True}
        return str(self._sdk.launch(self._task(task, secrets), **options))

    def find(self, cluster: str) -> str | None:
        """The request that launched the cluster, if there is one."""
        for request in self._sdk.api_status(all_status=True, cluster_name=cluster):
            if request.name in ("sky.launch", "launch"):
                return str(request.request_id)
        return None

    def state(self, cluster: str, request: str) -> dict[str, Any]:
        """``phase``: launching, then SkyPilot's job status; or launch_failed, refused, cancelled, gone, unclear."""
        known = self._sdk.api_status(request_ids=[request], all_status=True)
        status = str(getattr(known[0].status, "value", known[0].status)) if known else "SUCCEEDED"
        if status in ("PENDING", "RUNNING", "WAITING"):
            return {"phase": "launching", "reason": str(known[0].status_msg or "")}
        if status == "CANCELLED":
            return {"phase": "cancelled", "reason": "the launch was cancelled"}
        if status == "FAILED":
            try:
                self._sdk.get(request)
            except Exception as error:
                kind = "refused" if self._kind(error) == "refused" else "launch_failed"
                return {"phase": kind, "reason": _told(error)}
        if request not in self._jobs:
            # Requests are forgotten after a day; a cluster has only one job, the first.
            self._jobs[request] = (self._sdk.get(request)[0] if known else None) or 1
        return self._job(cluster, self._jobs[request])

    def _job(self, cluster: str, job: int) -> dict[str, Any]:
        try:
            status = self._sdk.get(self._sdk.job_status(cluster, [job])).get(job)
        except (self._exceptions.ClusterDoesNotExist, self._exceptions.ClusterNotUpError) as error:
            return {"phase": "gone", "reason": _told(error)}
        except Exception as error:  # often only that a node does not answer: the cloud knows whether it is still there
            if self._kind(error) == "silent":
                raise
            refresh = self._sky.StatusRefreshMode.FORCE
            records = self._sdk.get(self._sdk.status([cluster], refresh=refresh))
            up = bool(records) and str(getattr(records[0]["status"], "value", records[0]["status"])) == "UP"
            return {"phase": "unclear" if up else "gone", "reason": _told(error)}
        return {"phase": "unclear" if status is None else str(status.value).lower(), "reason": ""}

    def logs(self, number: int, cluster: str, request: str, follow: bool) -> None:
        """The job's log, in pieces."""
        job = self._jobs.get(request, 1)
        for piece in self._sdk.tail_logs(cluster, job, follow=follow, preload_content=False):
            if piece is None:
                return
            self._say({"id": number, "text": piece})

    def cancel(self, cluster: str, request: str) -> None:
        """End the launch, or interrupt the job."""
        if request in self._jobs:
            self._sdk.get(self._sdk.cancel(cluster, job_ids=[self._jobs[request]]))
        else:
            self._sdk.get(self._sdk.api_cancel([request], silent=True))

    def down(self, cluster: str) -> None:
        """Take the cluster down; no error if it is gone."""
        try:
            self._sdk.get(self._sdk.down(cluster))
        except self._exceptions.ClusterDoesNotExist:
            return

    def ssh(self, cluster: str) -> list[str]:
        """See that ``ssh CLUSTER`` works from this machine: the command ``sky status`` does it.

        Options for ssh where it would not find what SkyPilot wrote: that goes to $HOME, and ssh looks in the home
        folder that the user database names.
        """
        sky = Path(sys.executable).with_name("sky")
        subprocess.run([str(sky), "status", cluster], check=True, capture_output=True, timeout=60)
        home = Path.home()
        if home == Path(pwd.getpwuid(os.getuid()).pw_dir):
            return []
        made = home / ".sky" / "generated"
        return ["-F", str(made / "ssh" / cluster), "-i", str(made / "ssh-keys" / f"{cluster}.key")]

    def _task(self, text: str, secrets: list[str]) -> Any:
        import yaml

        config = yaml.safe_load(text)
        values = [(name, os.environ[name]) for name in secrets]
        if not values:
            config.pop("secrets", None)
        return self._sky.Task.from_yaml_config(config, secrets_overrides=values or None)

    def _kind(self, error: BaseException) -> str:
        e = self._exceptions
        silent = (e.ApiServerConnectionError, e.ServerTemporarilyUnavailableError, ConnectionError, TimeoutError)
        if isinstance(error, silent):
            return "silent"
        if isinstance(error, e.ClusterDoesNotExist):
            return "lost"
        unavailable = isinstance(error, e.ResourcesUnavailableError) and not getattr(error, "no_failover", False)
        mistakes = (e.NotSupportedError, e.ResourcesMismatchError, e.InvalidClusterNameError, e.NoCloudAccessError)
        refused = (ValueError, TypeError, AssertionError, SystemExit, *mistakes)
        return "refused" if isinstance(error, refused) and not unavailable else "other"

    def _say(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._out.write(json.dumps(message).encode() + b"\n")
            self._out.flush()


def _told(error: BaseException) -> str:
    text = " ".join(f"{error}".split()) or type(error).__name__
    return "".join(part.partition("m")[2] if i else part for i, part in enumerate(text.split("\x1b[")))[:2000]


def main() -> None:
    """Answer until standard input ends."""
    # What SkyPilot prints is for people; the answers have the pipe for themselves.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    bridge = Bridge(out)
    with ThreadPoolExecutor(64) as pool:
        for line in sys.stdin.buffer:
            pool.submit(bridge.answer, json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main()

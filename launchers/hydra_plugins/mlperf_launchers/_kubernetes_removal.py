"""The end of attempts' objects: many in one question, and while other jobs still run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from hydra_plugins.mlperf_launchers._cluster import Attempt
from hydra_plugins.mlperf_launchers._kubernetes_api import Api, Refused, batch, core
from hydra_plugins.mlperf_launchers._kubernetes_manifest import UID
from hydra_plugins.mlperf_launchers._outcome import one_line
from hydra_plugins.mlperf_launchers._process import say

_TOGETHER_S = 1.0  # how long attempts that end are gathered
_FORCE_S = 5.0  # pods that are still there so long after their Job was removed are on nodes that do not answer
_PAUSES_S = (0.0, 1.0, 4.0)
_NO_COLLECTIONS = (403, 405)  # a Role may allow to delete each, and not all at once


def selector(attempts: Iterable[Attempt]) -> str:
    """The label selector of all that belongs to these attempts."""
    return f"{UID} in ({','.join(attempt.uid for attempt in attempts)})"


def end(api: Api, namespace: str, attempts: Sequence[Attempt], grace_s: int | None = None) -> None:
    """Delete Jobs and pods; what is gone already is no error.

    Args:
        api: the server.
        namespace: where they are.
        attempts: whose.
        grace_s: that of the pods; None: their own. Those that have ended go at once.

    Raises:
        Refused, Unreachable: not all of it was deleted.
    """
    wanted = selector(attempts)
    names = [attempt.uid for attempt in attempts]
    _delete(api, batch(namespace, "jobs"), wanted, lambda: names, {"propagationPolicy": "Background"})
    options = {} if grace_s is None else {"gracePeriodSeconds": grace_s}
    _delete(api, core(namespace, "pods"), wanted, lambda: _pods(api, namespace, wanted), options)


def remove(api: Api, namespace: str, attempts: Sequence[Attempt]) -> None:
    """Delete everything of the attempts, and wait until their pods are gone, on nodes that do not answer too.

    Raises:
        Refused, Unreachable: not all of it was deleted.
    """
    end(api, namespace, attempts)
    wanted = selector(attempts)
    for attempt in attempts:
        if attempt.spec.need.nodes > 1:
            _gone(api, core(namespace, "services", attempt.uid), {})
    until = time.monotonic() + _FORCE_S
    while _pods(api, namespace, wanted):
        if time.monotonic() > until:
            end(api, namespace, attempts, grace_s=0)
            break
        time.sleep(0.2)


def _pods(api: Api, namespace: str, wanted: str) -> list[str]:
    found = api.ask("GET", core(namespace, "pods"), labelSelector=wanted)["items"]
    return [str(pod["metadata"]["name"]) for pod in found]


def _delete(
    api: Api, path: str, wanted: str, names: Callable[[], list[str]], options: dict[str, str] | dict[str, int]
) -> None:
    try:
        api.ask("DELETE", path, _options(options), labelSelector=wanted)
    except Refused as error:
        if error.status not in _NO_COLLECTIONS:
            raise
        for name in names():
            _gone(api, f"{path}/{name}", options)


def _gone(api: Api, path: str, options: dict[str, str] | dict[str, int]) -> None:
    try:
        api.ask("DELETE", path, _options(options))
    except Refused as error:
        if error.status != 404:
            raise


def _options(options: dict[str, str] | dict[str, int]) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "DeleteOptions", **options}


class Remover:
    """Removes attempts in a thread, those that end at about the same time together.

    Args:
        remove: removes some; it is tried a few times, then what remains is told.
    """

    def __init__(self, remove: Callable[[Sequence[Attempt]], None]) -> None:
        self._remove = remove
        self._waiting: list[Attempt] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, attempt: Attempt) -> None:
        """Remove it soon."""
        with self._changed:
            self._waiting.append(attempt)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="removal", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until all is removed, or could not be."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                self._changed.wait_for(lambda: self._closed, _TOGETHER_S)
                due, self._waiting = self._waiting, []
            if not due:
                return
            self._patiently(due)

    def _patiently(self, attempts: Sequence[Attempt]) -> None:
        problem = ""
        for pause_s in _PAUSES_S:
            time.sleep(pause_s)
            try:
                self._remove(attempts)
            except Exception as error:  # whatever a client library raises: told at last
                problem = one_line(error)
            else:
                return
        names = ", ".join(attempt.uid for attempt in attempts)
        say(f"mlperf_exp: these Jobs could not be removed: {names}: {problem}\n")

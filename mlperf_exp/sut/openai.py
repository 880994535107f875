"""Servers that speak OpenAI's completions API over HTTP, as one system under test.

One thread runs an event loop with all connections. ``submit`` only queues; the loop hands each query to the server
with the least outstanding work, and tells the sink of first tokens and ends the moment they are read.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from mlperf_exp.client import Lag
from mlperf_exp.config import OpenaiBackend
from mlperf_exp.errors import UserError
from mlperf_exp.messages import Completion, Query, Sample
from mlperf_exp.sut.base import Sink
from mlperf_exp.sut.http.answer import Tokenize
from mlperf_exp.sut.http.completions import Client
from mlperf_exp.sut.http.dispatcher import Dispatcher
from mlperf_exp.sut.http.endpoints import api_key, base_urls
from mlperf_exp.sut.http.probe import Probe
from mlperf_exp.sut.http.request import Request, head
from mlperf_exp.sut.routing.router import Retry

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_STOP_S = 10.0
_OTHER_FILES = 256  # open files that the rest of the process may need


class OpenAI:
    """The backend ``openai``; see the module.

    Time limits, all from the configuration: ``connect_timeout_s`` for a connection; ``request_timeout_s`` for a query
    from its sending to its end; ``idle_timeout_s`` for silence, which is that of the query's own stream once it has
    begun, and before that of its whole server, because a query may wait long in the queue of a server that is busy.

    Args:
        config: servers, limits and the name of the variable that holds the API key.
        model: the model's name, which decides where a server offers several and ``served_model`` is not set.
        tokenize: makes token ids from text, for servers that return no ids.
        retry: which queries go to another server when a connection breaks.
        longest_first: of the number of samples, over how many queries a test may be sorted.
    """

    def __init__(
        self,
        config: OpenaiBackend,
        *,
        model: str,
        max_tokens: int = 128,
        min_tokens: int = 1,
        ignore_eos: bool = False,
        tokenize: Tokenize | None = None,
        retry: Retry = Retry.never,
        longest_first: Callable[[int], int] = lambda samples: 0,  # noqa: ARG005
    ) -> None:
        self._config = config
        self._retry, self._longest_first = retry, longest_first
        self._bases = base_urls(config.urls)
        self._model, self._tokenize = model, tokenize
        self._max_tokens, self._ignore_eos = max_tokens, ignore_eos
        self._min_tokens = min_tokens if config.send_min_tokens else None

        self._lock = threading.Lock()  # guards _accepting, _woken and _inbox
        self._accepting = False
        self._woken = False
        self._inbox: deque[tuple[Sequence[Query], Sink]] = deque()
        self._ending = "not started"  # why queries are not accepted

        # Of the loop's thread alone.
        self._client: Client | None = None
        self._dispatcher: Dispatcher | None = None

        self._loop: asyncio.AbstractEventLoop | None = None
        self.lag = Lag()
        self._thread: threading.Thread | None = None

    def start(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Check every server, and send each one short query.

        Raises:
            UserError: a server is not there, refuses us, or cannot be measured.
            RunFailed: a server broke in the warm-up.
        """
        began = time.perf_counter()
        _allow_open_files(self._config.connections, len(self._bases))
        key = api_key(self._config.api_key_env)
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai", daemon=True)
        self._thread.start()
        try:
            checked = self._call(self._open(key, samples))
        except BaseException:
            self.stop()
            raise
        self._loop.call_soon_threadsafe(self.lag.watch, self._loop)
        with self._lock:
            self._accepting = True
        return {"start_s": checked - began, "warmup_s": time.perf_counter() - checked}

    def submit(self, queries: Sequence[Query], sink: Sink) -> None:
        """Queue the queries; the loop is woken once for all that came since it last looked."""
        with self._lock:
            if self._accepting and self._loop is not None:
                self._inbox.append((queries, sink))
                if not self._woken:
                    self._woken = True
                    self._loop.call_soon_threadsafe(self._take)
                return
        sink.complete([Completion(query.row, error=self._ending) for query in queries])

    def reset(self, samples: Sequence[Sample]) -> None:
        """Connect anew and check the servers again; what they keep is theirs, and no API of OpenAI's empties it."""
        self.stop()
        self.start(samples)

    def report(self) -> tuple[dict[str, float], tuple[str, ...]]:
        """See :class:`mlperf_exp.sut.base.Reports`; of several servers only."""
        if self._dispatcher is None or len(self._bases) == 1:
            return {}, ()
        router = self._dispatcher.router
        figures = {"replicas": float(len(self._bases)), "replicas_lost": float(len(self._bases) - router.alive)}
        tally = router.tally()
        alive = [server for server in range(len(self._bases)) if not router.is_out(server)]
        return figures | (tally.metrics(alive) if tally else {}), tuple(
            f"A server got no more queries: {line}." for line in self._dispatcher.losses[:3]
        )

    def stop(self) -> None:
        """Complete what is outstanding with the error "stopped", close all connections and end the thread."""
        with self._lock:
            self._accepting = False
            self._ending = "stopped"
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        closing = asyncio.run_coroutine_threadsafe(self._close(), loop)
        try:
            closing.result(_STOP_S)
        except Exception:  # whatever it is, the thread must still end
            _log.warning("the connections could not be closed in order", exc_info=True)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_STOP_S)
        if thread.is_alive():
            _log.warning("the thread of the openai backend did not end within %g s", _STOP_S)
        else:
            loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        assert self._loop is not None
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    # What follows runs on the loop's thread.

    async def _open(self, key: str | None, samples: Sequence[Sample]) -> float:
        """Check and warm up all servers at the same time; returns when the checks ended (perf_counter)."""
        prompts = [(head(sample.tokens), len(sample.tokens) + self._max_tokens) for sample in samples]
        self._client = Client(self._config, key, max_tokens=self._max_tokens, tokenize=self._tokenize)
        context = max((work for _, work in prompts), default=0)
        probe = Probe(self._client, self._config, has_key=key is not None, context=context)
        models = await _all(probe.model(base, self._model) for base in self._bases)
        checked = time.perf_counter()
        first = samples[0].tokens[:64] if samples else (1,)
        requests = await _all(
            probe.warm_up(
                base, Request(model, self._max_tokens, min_tokens=self._min_tokens, ignore_eos=self._ignore_eos), first
            )
            for base, model in zip(self._bases, models, strict=True)
        )
        servers = [(base, request.tail()) for base, request in zip(self._bases, requests, strict=True)]
        sort = self._longest_first(len(prompts)) if len(servers) > 1 else 0
        self._dispatcher = Dispatcher(self._client, self._config, servers, prompts, self._retry, sort)
        return checked

    def _take(self) -> None:
        self._woken = False  # before looking: what comes from now on wakes the loop again
        if self._dispatcher is not None:
            self._empty_inbox(self._dispatcher)
            self._dispatcher.dispatch()

    def _empty_inbox(self, dispatcher: Dispatcher) -> None:
        while self._inbox:
            dispatcher.take(*self._inbox.popleft())

    async def _close(self) -> None:
        if self._dispatcher is not None:
            self._empty_inbox(self._dispatcher)  # nothing is added any more
            await self._dispatcher.close()
        if self._client is not None:
            await self._client.close()


async def _all(coroutines: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """The results of all, once all have ended; else the error of the first in their order."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    good: list[_T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        good.append(result)
    return good


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # comes with vLLM; makes this client about half as fast again
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _allow_open_files(connections: int, servers: int) -> None:
    """Raise this process's soft limit on open files as far as the connections need it.

    Raises:
        UserError: the hard limit is too low.
    """
    needed = connections * servers + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            "backend.connections",
            f"{connections} connections to each of {servers} servers need {needed} open files, and this process may "
            f"open {hard}",
            f"Set it to at most {max(1, (hard - _OTHER_FILES) // servers)}, or raise the limit (ulimit -n)",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))

"""vLLM in this process's charge: ``AsyncLLM`` with continuous batching over all that is outstanding.

The engine runs in vLLM's own process; this side only hands token ids over and takes the first and the last output of
each query (``stream_interval``), without making text. What vLLM prints goes to ``engine.log``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from mlperf_exp.client import Lag
from mlperf_exp.config import Device, VllmBackend
from mlperf_exp.errors import Interrupted, RunFailed
from mlperf_exp.messages import Answers, Completion, Plan, Query, Sample
from mlperf_exp.sut import attention
from mlperf_exp.sut.base import Sink
from mlperf_exp.sut.reaper import Reaper

_TAIL_LINES = 400
_ABANDON_S = 15.0  # with the rest of a run's end, half a minute after Ctrl-C at most


class Vllm:
    """See the module. ``model`` is a local folder with a Hugging Face checkpoint, or only its ``config.json``."""

    def __init__(self, plan: Plan, model: Path) -> None:
        assert isinstance(plan.config.backend, VllmBackend)
        self._plan, self._backend, self._model = plan, plan.config.backend, model
        self._log = plan.run_dir / "engine.log"
        self._loop = asyncio.new_event_loop()
        self.lag = Lag()
        self._thread: threading.Thread | None = None
        self._starting: concurrent.futures.Future[None] | None = None
        self._abandoned = False
        self._engine: Any = None
        self._params: Any = None
        self._prompts: list[list[int]] = []
        self._inbox: deque[tuple[Sequence[Query], Sink]] = deque()
        self._woken = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests = 0
        self._warnings: tuple[str, ...] = ()
        self._reaper: Reaper | None = None

    def start(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Start the engine and warm it up; see :class:`mlperf_exp.sut.base.SystemUnderTest`."""
        self._prompts = [list(sample.tokens) for sample in samples]
        began = time.perf_counter()
        self._reaper = Reaper.start()
        with _output_to(self._log):
            self._thread = threading.Thread(target=self._run_loop, name="vllm", daemon=True)
            self._thread.start()
            self._starting = asyncio.run_coroutine_threadsafe(self._start_engine(), self._loop)
            try:
                self._wait(self._starting, "start")
            except BaseException:
                self._abandon_start(self._starting)
                raise
        self._reaper.seal()
        started = time.perf_counter()
        self._wait(asyncio.run_coroutine_threadsafe(self._warm_up(), self._loop), "warm up")
        return {"start_s": started - began, "warmup_s": time.perf_counter() - started}

    def submit(self, queries: Sequence[Query], sink: Sink) -> None:
        """Hand the queries to the engine's loop."""
        self._inbox.append((queries, sink))
        if not self._woken:  # one wake-up a burst
            self._woken = True
            self._loop.call_soon_threadsafe(self._drain)

    def reset(self, samples: Sequence[Sample]) -> None:
        """Wait until the engine is idle, and empty its caches; see :class:`mlperf_exp.sut.base.SystemUnderTest`."""
        self._wait(asyncio.run_coroutine_threadsafe(self._become_idle(), self._loop), "become idle")
        self._prompts = [list(sample.tokens) for sample in samples]

    def report(self) -> tuple[dict[str, float], tuple[str, ...]]:
        """What the engine was started without."""
        return {}, self._warnings

    def stop(self) -> None:
        """Shut the engine down and end its processes."""
        if self._starting is not None and not self._starting.done():
            return  # still importing, and will go no further; should it, the reaper waits for this process's end
        if self._thread is not None:
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result(30)
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._thread = None
        if self._reaper is not None:
            self._reaper.kill()
            self._reaper = None

    def _run_loop(self) -> None:
        # The engine's processes inherit this mask: Ctrl-C reaches the framework, which then ends them in order.
        resource_tracker.ensure_running()  # it unblocks signals in the thread that starts it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _wait(self, future: concurrent.futures.Future[None], what: str) -> None:
        timeout_s = self._backend.start_timeout_s
        try:
            future.result(timeout_s)
        except Interrupted:  # by a signal's handler, in the midst of waiting
            raise
        except concurrent.futures.TimeoutError:
            raise RunFailed(
                f"vLLM did not {what} within {timeout_s:g} s (backend.start_timeout_s); see {self._log}"
            ) from None
        except Exception as error:
            raise RunFailed(f"vLLM could not {what}: {_cause(error, self._log)}") from error

    def _abandon_start(self, starting: concurrent.futures.Future[None]) -> None:
        """End a start that failed or is not wanted any more; vLLM blocks the loop until its engine is up, or dead."""
        self._abandoned = True
        deadline = time.monotonic() + _ABANDON_S
        while not starting.done() and time.monotonic() < deadline:
            for process in multiprocessing.active_children():
                process.kill()
            concurrent.futures.wait([starting], timeout=0.2)

    async def _start_engine(self) -> None:
        self._set_environment()
        import vllm
        from vllm import SamplingParams
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.async_llm import AsyncLLM

        if self._abandoned:  # meanwhile: the imports above take long
            raise RunFailed("the start of vLLM was given up")
        model = self._plan.config.model
        self._params = SamplingParams(
            temperature=0.0,
            max_tokens=model.max_new_tokens,
            min_tokens=model.min_new_tokens,
            stop_token_ids=stop_tokens(self._model),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        engine, self._warnings = attention.settle(self._plan.engine, vllm.__version__)
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(self._model), **engine))

    def _set_environment(self) -> None:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_COLOR", "0")
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # a fork copies LoadGen, and holds the reaper's pipe
        os.environ["SPT_NOENV"] = "1"  # vLLM's setproctitle would wipe out the mark that the reaper looks for
        os.environ.setdefault("TRITON_CACHE_DIR", str(triton_cache()))
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all that is needed is in the model's folder
        if self._plan.config.hw.device is Device.cpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, int(self._plan.config.hw.memory_gib))))

    async def _warm_up(self) -> None:
        self.lag.watch(self._loop)
        sink = _WarmUp()
        longest = sorted(self._prompts, key=len)[-self._backend.warmup_queries :]
        await asyncio.gather(*(self._answer(Query(i, -1), prompt, sink) for i, prompt in enumerate(longest)))
        if sink.error:
            raise RuntimeError(sink.error)

    def _drain(self) -> None:
        self._woken = False
        while self._inbox:
            queries, sink = self._inbox.popleft()
            for query in queries:
                task = self._loop.create_task(self._answer(query, self._prompts[query.sample], sink))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _answer(self, query: Query, prompt: list[int], sink: Sink) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        self._requests += 1
        tokens: list[int] = []
        try:
            async for output in self._engine.generate(
                {"prompt_token_ids": prompt}, self._params, request_id=str(self._requests)
            ):
                fresh = output.outputs[0].token_ids
                if fresh and not tokens:
                    sink.first_token([query.row], [fresh[0]])
                tokens.extend(fresh)
        except EngineDeadError:
            sink.failed(f"vLLM's engine died: {_cause(None, self._log)}")
        except asyncio.CancelledError:
            sink.complete([Completion(query.row, error="stopped")])
        except Exception as error:
            sink.complete([Completion(query.row, error=f"vLLM: {' '.join(str(error).split())[:300]}")])
        else:
            sink.complete([Completion(query.row, tokens)])

    async def _become_idle(self) -> None:
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        await self._engine.reset_prefix_cache()
        await self._engine.reset_mm_cache()

    async def _shut_down(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=5)
        if self._engine is not None:
            with _output_to(self._log):
                self._engine.shutdown()
            self._engine = None


def triton_cache() -> Path:
    """Triton's own cache of kernels. vLLM, where none is named, uses another one while it compiles than once it has."""
    return Path(os.environ.get("TRITON_HOME", "~")).expanduser() / ".triton" / "cache"


def stop_tokens(folder: Path) -> list[int]:
    """The end-of-text ids of a checkpoint: of its generation defaults where it has them, else of its configuration."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        ids = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
        if ids is not None:
            return list(ids) if isinstance(ids, list) else [ids]
    return []


class _WarmUp:
    """A sink that only remembers the first error."""

    def __init__(self) -> None:
        self.error: str | None = None

    def first_token(self, rows: Sequence[int], tokens: Sequence[int] = ()) -> None:
        pass

    def complete(self, completions: Sequence[Completion]) -> None:
        self.error = self.error or next((c.error for c in completions if c.error), None)

    def complete_many(self, answers: Answers) -> None:
        pass

    def failed(self, reason: str) -> None:
        self.error = self.error or reason


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send what this process and its new children print to ``path``; vLLM's logger stays there afterwards."""
    with path.open("ab", buffering=0) as file:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for old, stream in zip(kept, (1, 2), strict=True):
                os.dup2(old, stream)
                os.close(old)
            logger = logging.getLogger("vllm")
            for handler in list(logger.handlers):
                logger.removeHandler(handler)
            logger.addHandler(logging.FileHandler(path))


def _cause(error: BaseException | None, log: Path) -> str:
    """The reason in one line: the last error that the engine printed, else the exception's own words."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    except OSError:
        lines = []
    pattern = re.compile(r"\b(\w*(?:Error|Exception|OutOfMemory\w*)): (.+)")
    found = [match for line in lines if (match := pattern.search(line))]
    own = [m for m in found if "Engine core initialization failed" not in m.group(0)]
    text = own[-1].group(0) if own else (f"{type(error).__name__}: {error}" if error else "it ended without a word")
    if "out of memory" in text.lower() or "No available memory for the cache" in text:
        text += " Lower backend.engine.gpu_memory_utilization, max_num_seqs or max_model_len."
    return f"{' '.join(text.split())[:400]} (see {log})"

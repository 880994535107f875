"""What can go wrong with a run, each as a function that does it to an attempt; ``FAULTS`` is the table of all."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import mlflow_server
from tests.faults.attempt import ENGINE, LONG, NO_TRACKING, SHORT, STEADY, Attempt
from tests.sut.openai_server import Kind, Server
from tests.train.few import few_digits

SERVED = ("offline", "server")
ALL = (*SERVED, "train")


@dataclass(frozen=True)
class Fault:
    """A fault and how a run has to end by it.

    ``status``: the exit statuses that are right; ``says``: words of which the last line on stderr, or a warning of the
    record, holds one; ``record``: the record's status, None where there may be none.
    """

    name: str
    do: Callable[[Attempt], None]
    status: tuple[int, ...]
    says: tuple[str, ...]
    record: str | None
    scenarios: tuple[str, ...] = SERVED


def killed_engine(attempt: Attempt) -> None:
    attempt.start(*ENGINE[attempt.scenario], NO_TRACKING)
    attempt.begun(10)
    attempt.hurt()
    for engine in attempt.engines():
        engine.kill()
    attempt.end()


def hanging_engine(attempt: Attempt) -> None:
    bound_s = 60 if attempt.scenario == "train" else 5  # which counts from the start of a training
    attempt.start(*ENGINE[attempt.scenario], NO_TRACKING, f"scenario.stall_timeout_s={bound_s}")
    attempt.begun(10)
    attempt.hurt()
    for engine in attempt.engines():
        engine.suspend()
    attempt.end()


def out_of_memory(attempt: Attempt) -> None:
    """The kernel's own out-of-memory killer, by a memory group that has no room."""
    group = Path("/sys/fs/cgroup/memory") / f"fault-{attempt.mark}"
    attempt.start(*ENGINE[attempt.scenario], NO_TRACKING)
    attempt.begun(10)
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text("1M")
        attempt.hurt()
        (group / "cgroup.procs").write_text(str(attempt.engines()[0].pid))
        attempt.end()
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def killed_run(attempt: Attempt) -> None:
    attempt.start(*LONG[attempt.scenario], f"tracking.uri=sqlite:///{attempt.folder}/mlflow.db")
    attempt.begun()
    attempt.hurt()
    assert attempt.process is not None
    attempt.process.kill()
    attempt.end()


def _signal(number: signal.Signals) -> Callable[[Attempt], None]:
    def send(attempt: Attempt) -> None:
        attempt.start(*LONG[attempt.scenario], NO_TRACKING)
        attempt.begun()
        attempt.hurt()
        assert attempt.process is not None
        attempt.process.send_signal(number)
        attempt.end()

    return send


def closed_terminal(attempt: Attempt) -> None:
    attempt.start(*LONG[attempt.scenario], NO_TRACKING, terminal=True)
    attempt.begun()
    attempt.hurt()
    attempt.hang_up()
    attempt.end()


@contextlib.contextmanager
def _small_disk(attempt: Attempt, size: str) -> Iterator[None]:
    attempt.run_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(attempt.run_dir)], check=True)
    try:
        yield
    finally:
        kept = attempt.folder / "kept"
        shutil.copytree(attempt.run_dir, kept, ignore_dangling_symlinks=True)
        subprocess.run(["umount", "--lazy", str(attempt.run_dir)], check=True)
        attempt.run_dir.rmdir()
        kept.rename(attempt.run_dir)


def full_disk(attempt: Attempt) -> None:
    with _small_disk(attempt, "8m"):
        attempt.start(*LONG[attempt.scenario], NO_TRACKING)
        attempt.begun()
        with (attempt.run_dir / "filler").open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 65536)
                file.flush()
        attempt.hurt()
        assert attempt.process is not None
        attempt.process.send_signal(signal.SIGINT)  # it has to put away what it has, on a disk that takes nothing
        attempt.end()


def read_only_folder(attempt: Attempt) -> None:
    """A folder without the right to write, for a run that not even as root may go around it."""
    without = "-dac_override,-dac_read_search"
    prefix = ["setpriv", f"--bounding-set={without}", f"--inh-caps={without}"]
    attempt.start(*LONG[attempt.scenario], NO_TRACKING, prefix=prefix)
    attempt.begun()
    attempt.run_dir.chmod(0o555)
    attempt.hurt()
    assert attempt.process is not None
    attempt.process.send_signal(signal.SIGINT)
    attempt.end()
    attempt.run_dir.chmod(0o755)


def mlflow_down_at_start(attempt: Attempt) -> None:
    attempt.start(*SHORT[attempt.scenario], "tracking.uri=http://127.0.0.1:9", "tracking.timeout_s=20")
    attempt.end()


@contextlib.contextmanager
def _mlflow(attempt: Attempt) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = mlflow_server.free_port()
    with mlflow_server.serving(attempt.folder, port) as server:
        yield f"http://127.0.0.1:{port}", server


def mlflow_down_in_the_middle(attempt: Attempt) -> None:
    with _mlflow(attempt) as (uri, server):
        attempt.start(*STEADY[attempt.scenario], f"tracking.uri={uri}", "tracking.timeout_s=20")
        attempt.begun(1)
        attempt.hurt()
        mlflow_server.kill(server)
        attempt.end()


def mlflow_down_at_the_end(attempt: Attempt) -> None:
    with _mlflow(attempt) as (uri, server):
        attempt.start(*SHORT[attempt.scenario], f"tracking.uri={uri}", "tracking.timeout_s=20")
        attempt.until(lambda: (attempt.run_dir / "result.json").exists())
        attempt.hurt()
        mlflow_server.kill(server)
        attempt.end()


def slow_mlflow(attempt: Attempt) -> None:
    """It takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_swallow, args=(server,), daemon=True).start()
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        attempt.start(*SHORT[attempt.scenario], f"tracking.uri={uri}", "tracking.timeout_s=10")
        attempt.end()


def _swallow(server: socket.socket) -> None:
    held = []
    with contextlib.suppress(OSError):
        while True:
            held.append(server.accept())


def stepped_clock(attempt: Attempt) -> None:
    """An hour back, for this run alone: a library stands before the system's clock, and the monotonic one goes on."""
    library, step = attempt.folder / "clock.so", attempt.folder / "step"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    environment = {"LD_PRELOAD": str(library), "CLOCK_STEP": str(step)}
    attempt.start(*STEADY[attempt.scenario], NO_TRACKING, environment=environment)
    attempt.begun(1)
    attempt.hurt()
    step.touch()
    attempt.end()


def replaced_data(attempt: Attempt) -> None:
    data = attempt.folder / "articles.json"
    shutil.copy(Path("mlperf_exp/data/articles.json"), data)
    attempt.start(*STEADY[attempt.scenario], f"dataset.path={data}", NO_TRACKING)
    attempt.begun(1)
    attempt.hurt()
    data.write_text("[]")
    attempt.end()


def broken_image(attempt: Attempt) -> None:
    """A training reads its images as it goes on: one that is no image any more ends it, by name."""
    data = few_digits(attempt.folder, train=40)
    attempt.start(*LONG[attempt.scenario], f"dataset.path={data}", NO_TRACKING)
    attempt.begun()
    attempt.hurt()
    for image in (data / "train" / "3").iterdir():
        image.unlink()
        image.write_bytes(b"no image")
    attempt.end()


def two_in_one_folder(attempt: Attempt) -> None:
    attempt.start(*LONG[attempt.scenario], NO_TRACKING)
    attempt.begun()
    words = [*SHORT[attempt.scenario], NO_TRACKING, f"hydra.run.dir={attempt.run_dir}"]
    second = subprocess.run(
        [sys.executable, "-m", "mlperf_exp", *words], cwd=attempt.folder, capture_output=True, text=True, check=False
    )
    assert second.returncode == 2, second.stderr
    assert "another run is writing to" in second.stderr
    done = attempt.done()
    attempt.until(lambda: attempt.done() > done)  # the first one goes on
    attempt.hurt()
    assert attempt.process is not None
    attempt.process.send_signal(signal.SIGINT)
    attempt.end()


def _served(kind: Kind) -> Callable[[Attempt], None]:
    def serve(attempt: Attempt) -> None:
        with Server() as server:
            server.everything = Kind.GOOD
            words = [word for word in STEADY[attempt.scenario] if not word.startswith("backend")]
            attempt.start(*words, "scenario.samples=72", "backend=openai", f"backend.urls=[{server.url}]",
                          "backend.served_model=tiny", "backend.idle_timeout_s=3", "backend.request_timeout_s=6",
                          NO_TRACKING, "scenario.stall_timeout_s=15")  # fmt: skip
            attempt.begun(10)
            attempt.hurt()
            server.everything = kind
            attempt.end()

    return serve


def lost_replica(attempt: Attempt) -> None:
    """One of two replicas on a Ray of the run's own is killed; the run goes on to its end with the other."""
    until = "scenario.min_query_count=6000" if attempt.scenario == "offline" else "scenario.min_duration_s=20"
    attempt.start(*LONG[attempt.scenario], "backend.replicas=2", "scenario.samples=100", until, NO_TRACKING)
    attempt.begun()
    attempt.hurt()
    replicas = [process for process in attempt.family() if process.name().startswith("ray::Replica")]
    assert len(replicas) == 2, replicas
    replicas[0].kill()
    attempt.end()


def busy_gpu(attempt: Attempt) -> None:
    """NVIDIA's library is a stand-in that tells of a GPU and of another process on it."""
    stand_in = {"PYTHONPATH": str(Path(__file__).parent / "stand_in")}
    attempt.hurt()
    attempt.start(*SHORT[attempt.scenario], "hw=h100", NO_TRACKING, environment=stand_in)
    attempt.end()


INTERRUPTED = (130,)
FAULTS = (
    Fault("run killed", killed_run, (-9,), (), None, scenarios=ALL),
    Fault("disk full", full_disk, (1, 130), ("No space left", "interrupted"), None, scenarios=ALL),
    Fault("folder made read-only", read_only_folder, (1, 2), ("Permission denied",), None, scenarios=ALL),
    Fault("MLflow down at the start", mlflow_down_at_start, (0,), ("send it later",), "finished", scenarios=ALL),
    Fault("MLflow down in the middle", mlflow_down_in_the_middle, (0,), ("send it later",), "finished", scenarios=ALL),
    Fault("MLflow down at the end", mlflow_down_at_the_end, (0,), ("send it later",), "finished", scenarios=ALL),
    Fault("MLflow never answers", slow_mlflow, (0,), ("send it later",), "finished", scenarios=ALL),
    Fault("clock set back an hour", stepped_clock, (1,), ("clock was set back by",), "failed"),
    Fault("clock set back an hour", stepped_clock, (0,), (), "finished", scenarios=("train",)),
    Fault("SIGINT", _signal(signal.SIGINT), INTERRUPTED, ("interrupted",), "interrupted", scenarios=ALL),
    Fault("SIGTERM", _signal(signal.SIGTERM), INTERRUPTED, ("interrupted",), "interrupted", scenarios=ALL),
    Fault("terminal closed", closed_terminal, INTERRUPTED, ("interrupted",), "interrupted", scenarios=ALL),
    Fault("data file replaced", replaced_data, (0,), (), "finished"),
    Fault("images replaced", broken_image, (1,), ("cannot be read as an image",), "failed", scenarios=("train",)),
    Fault("two runs in one folder", two_in_one_folder, INTERRUPTED, ("interrupted",), "interrupted", scenarios=ALL),
    Fault("server answers 429", _served(Kind.STATUS_429), (0, 1), ("429",), None),
    Fault("server answers 500", _served(Kind.STATUS_500), (0, 1), ("500",), None),
    Fault("server sends half a chunk", _served(Kind.HALF_EVENT), (0, 1), ("",), None),
    Fault("server's stream never ends", _served(Kind.ENDLESS_COMMENTS), (0, 1), ("",), None),
    Fault("engine process killed", killed_engine, (1,), ("engine died",), "failed"),
    Fault("engine hangs", hanging_engine, (1,), ("no query finished in",), "failed"),
    Fault("engine out of memory", out_of_memory, (1,), ("engine died",), "failed"),
    Fault("replica lost", lost_replica, (0,), ("was lost",), "finished"),
    Fault("GPU busy with another process", busy_gpu, (0,), ("Another process was on",), "finished"),
    Fault("rank killed", killed_engine, (1,), ("rank 1 on ",), "failed", scenarios=("train",)),
    Fault("rank hangs", hanging_engine, (1,), ("made no step in 60 s",), "failed", scenarios=("train",)),
    Fault("rank out of memory", out_of_memory, (1,), ("rank 1 on ",), "failed", scenarios=("train",)),
)


def problems(fault: Fault, attempt: Attempt) -> list[str]:
    """What is not as it should be after a fault, a line each."""
    found = []
    if attempt.status is None:
        found.append(f"did not end within {attempt.bound_s:.0f} s")
    elif attempt.status not in fault.status:
        found.append(f"exit status {attempt.status}, not {' or '.join(map(str, fault.status))}")
    if "Traceback" in attempt.stderr:
        found.append("a traceback on stderr")
    try:
        result = attempt.result()
    except ValueError:
        return [*found, "result.json is torn"]
    if fault.says and told(fault, attempt) is None:
        found.append(f"said: {attempt.said()[:150]}")
    if fault.record is not None and (result.get("run") or {}).get("status") != fault.record:
        found.append(f"the record says {(result.get('run') or {}).get('status')}")
    if result and result["verdict"]["valid"]:
        found.append("it was called valid")
    completed = (result.get("metrics") or {}).get("completed")
    if fault.record in ("failed", "interrupted") and not completed:
        found.append("what was finished is not in the record")
    found += [f"left behind: {name}" for name in attempt.left_behind()]
    if (status := attempt.later_run()) != 0:
        found.append(f"a later run ended with {status}")
    return found


def told(fault: Fault, attempt: Attempt) -> str | None:
    """The sentence that gives the reason: the last one on stderr, or one of the verdict's; None where none does."""
    with contextlib.suppress(ValueError):
        verdict = attempt.result().get("verdict") or {}
        sentences = [attempt.said(), *verdict.get("warnings", ()), *verdict.get("reasons", ())]
        return next((text for text in sentences if any(word in text for word in fault.says)), None)
    return None


def kept(attempt: Attempt) -> str:
    """What the run's folder still tells."""
    noun = "images" if attempt.scenario == "train" else "queries"
    with contextlib.suppress(ValueError):
        result = attempt.result()
        if result:
            return f"{result['metrics'].get('completed', 0):,.0f} {noun}, {result['run']['status']}"
    return f"{attempt.done():,} {noun} in live.jsonl"


def as_row(fault: Fault, attempt: Attempt, wrong: list[str]) -> dict[str, object]:
    """One line of the table of results."""
    return {
        "fault": fault.name,
        "scenario": attempt.scenario,
        "status": attempt.status,
        "seconds": round(attempt.seconds, 1),
        "said": (told(fault, attempt) or (attempt.said() if attempt.status else ""))[:160],
        "kept": kept(attempt),
        "wrong": wrong,
    }


def dump(rows: list[dict[str, object]]) -> str:
    return json.dumps(rows, indent=2, ensure_ascii=False)

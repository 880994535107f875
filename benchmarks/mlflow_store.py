"""What MLflow costs when it already holds a thousand runs: a real server on PostgreSQL, or a file.

    python benchmarks/mlflow_store.py RUN_DIR [--store postgresql|sqlite] [--runs 1000] [--postgres FOLDER]

``RUN_DIR`` is any run; its copies, with other ids and figures, are sent by the project's own tracking code, as jobs of
sweeps of 50. PostgreSQL is the one of Debian's package (``apt-get install postgresql``; MLflow's server needs ``pip
install "psycopg[binary]"``): a cluster of its own in a temporary folder, which ends with the script. As root it runs as
the user postgres.

Prints JSON: seconds to send a job (live figures, result, files) while the store is small and when it is full; what one
page of the UI sorted by a metric asks for; and ``python -m mlperf_exp.compare`` reading all of the runs from there.
Bar: a job below 2 s, none of which a measurement waits for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlperf_exp.files import write_json
from mlperf_exp.track.mirror import Mirror, prepare_environment

BAR_S = 2.0
SWEEP = 50  # jobs of one sweep
MEASURED = 30  # runs with all their files, at the beginning and at the end; those between have few, to save time
EXPERIMENT = "benchmark"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def postgres(folder: Path, binaries: Path) -> Iterator[str]:
    """A PostgreSQL server of its own; its address for SQLAlchemy."""
    data, port = folder / "pg", free_port()
    data.mkdir()
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    if user:
        shutil.chown(data, "postgres", "postgres")
        folder.chmod(0o755)
    subprocess.run([*user, binaries / "initdb", "-D", data, "-U", "mlflow", "--auth=trust", "-E", "UTF8"],
                   check=True, stdout=subprocess.DEVNULL, cwd="/")  # fmt: skip
    command = [*user, binaries / "postgres", "-D", data, "-p", str(port), "-k", data, "-h", "127.0.0.1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")  # fmt: skip
    try:
        ready = [binaries / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(ready, check=False, stdout=subprocess.DEVNULL).returncode:
            if server.poll() is not None:
                raise SystemExit("PostgreSQL did not start")
            time.sleep(0.1)
        subprocess.run(
            [binaries / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow"], check=True
        )
        yield f"postgresql://mlflow@127.0.0.1:{port}/mlflow"
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def mlflow_server(folder: Path, store: str) -> Iterator[str]:
    """MLflow's own server on that database; its address."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1",
               "--artifacts-destination", folder / "artifacts", "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((folder / "server.log").read_text()[-2000:])
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, 15)
        server.wait()


def copy(source: Path, sweep: Path, number: int, draw: random.Random, whole: bool) -> Path:
    """Another run like the source, as a job of a sweep, with figures of its own; where not whole, with few files."""
    folder = sweep / str(number)
    left_out = ["mlflow_run.json", "tracking*", "*.lock", ".*", *([] if whole else ["plots", "performance", "report*"])]
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*left_out))
    result = json.loads((folder / "result.json").read_text())
    result["run"]["id"] = f"{sweep.name}-{number}"
    result["metrics"] = {key: value * draw.uniform(0.8, 1.2) for key, value in result["metrics"].items()
                         if isinstance(value, int | float)}  # fmt: skip
    result["plan"]["config"]["scenario"]["target_qps"] = float(number + 1)
    write_json(folder / "result.json", result)
    return folder


def send(folder: Path, uri: str) -> float:
    """One job through the project's tracking: seconds until MLflow has all of it."""
    options = {
        "uri": uri, "experiment": EXPERIMENT, "interval_s": 5.0, "run_id": f"{folder.parent.name}-{folder.name}",
        "run_name": folder.name, "started_at": time.time(), "sweep": str(folder.parent),
    }  # fmt: skip
    began = time.perf_counter()
    mirror = Mirror(folder, options)
    if not mirror.attempt(mirror.send_live, mirror.send_result):
        raise SystemExit(f"MLflow did not take a run: {mirror.error}")
    return time.perf_counter() - began


def timed(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--store", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--runs", type=int, default=1000)
    newest = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/bin"))
    parser.add_argument("--postgres", type=Path, default=newest, help="folder of initdb and postgres")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end with this process
    draw = random.Random(0)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if args.store == "postgresql":
            store = stack.enter_context(postgres(folder, args.postgres))
            uri = stack.enter_context(mlflow_server(folder, store))
        else:
            uri = f"sqlite:///{folder}/elsewhere/mlflow.db"
        prepare_environment(uri)
        seconds = []
        for number in range(args.runs):
            sweep = folder / f"sweep-{number // SWEEP:03d}"
            sweep.mkdir(exist_ok=True)
            measured = not MEASURED <= number < args.runs - MEASURED
            made = copy(args.run_dir, sweep, number % SWEEP, draw, whole=measured)
            seconds.append(send(made, uri))
            if number % SWEEP == SWEEP - 1:
                print(f"{number + 1} runs: {statistics.median(seconds[-SWEEP:]):.2f} s a run", file=sys.stderr)
        from mlflow.tracking import MlflowClient

        client = MlflowClient(uri)
        place = client.get_experiment_by_name(EXPERIMENT).experiment_id
        order = ["metrics.tokens_per_second DESC"]
        page = [timed(lambda: client.search_runs([place], order_by=order, max_results=100)) for _ in range(5)]
        compare = [sys.executable, "-m", "mlperf_exp.compare", "--mlflow", "tags.status = 'finished'",
                   "--tracking-uri", uri, "--experiment", EXPERIMENT, "--out", str(folder / "comparison")]  # fmt: skip
        compare_s = timed(lambda: subprocess.run(compare, check=True, capture_output=True))
        tail = seconds[-MEASURED:]
        print(json.dumps({
            "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()},
            "store": args.store, "runs": args.runs,
            "files_of_a_job": sum(1 for path in args.run_dir.rglob("*") if path.is_file()),
            "send_s": {"first": seconds[0], "empty_median": statistics.median(seconds[:MEASURED]),
                       "full_median": statistics.median(tail), "full_worst": max(tail)},
            "page_of_100_sorted_s": statistics.median(page),
            "compare_all_s": compare_s,
            "bar_s": BAR_S, "passed": statistics.median(tail) < BAR_S,
        }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()

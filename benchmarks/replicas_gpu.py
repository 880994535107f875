"""Two engines over one on a machine with two GPUs: offline, and server at the highest valid rate.

    python benchmarks/replicas_gpu.py [--hw h200] [--gpus 2] [--seconds 40] [--weights online] --out replicas.json

For ``backend.replicas=1`` and ``=GPUS``, one GPU each, fp8: the whole command, a sweep on one start of the engines. The
server's rates are shares of one engine's offline rate, times the replicas; the highest that LoadGen calls VALID counts.
Bars: 2 x H200 offline at least 1.95 times one, server at least 1.9 times. Prints JSON as far as it came.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from h200_llama import count, model_words
from points import sweep


def measure(replicas: int, rate: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Offline and the server's rates with so many engines; ``rate`` is of one engine offline, in samples/s."""
    # dataset.samples is two times fewer than offline samples of one engine, whatever the number of engines
    points = [("offline", rate * replicas)]
    points += [("server", round(share * rate * replicas, 2)) for share in options.server]
    words = [*model_words(options), f"hw.gpus_per_node={options.gpus}", f"backend.replicas={replicas}",
             "backend.engine.tensor_parallel_size=1"]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        return sweep(Path(folder), points, words, seconds=options.seconds, offline=count(options) * replicas,
                     timeout=options.timeout)  # fmt: skip


def best(rows: list[dict[str, Any]], scenario: str, name: str) -> float | None:
    """The highest figure of a scenario among what LoadGen calls VALID."""
    return max(
        (r[name] for r in rows if r.get("scenario") == scenario and r.get("loadgen") == "VALID" and name in r),
        default=None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--hw", default="h200")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--weights", choices=("static", "online", "bf16"), default="online")
    parser.add_argument("--checkpoint", type=Path, default=Path(tempfile.gettempdir()) / "llama3_8b-fp8-static")
    parser.add_argument("--seconds", type=float, default=40, help="of load at each point")
    parser.add_argument("--rate", type=float, default=55.0, help="of one engine offline, in samples/s: sizes the load")
    parser.add_argument("--server", type=float, nargs="+", default=[0.85, 0.9, 0.95], help="shares of the offline rate")
    parser.add_argument("--set", nargs="*", default=[], help="overrides for all runs")
    parser.add_argument("--timeout", type=float, default=400)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {"weights": options.weights, "set": options.set}
    rate = options.rate
    for replicas in (1, options.gpus):
        rows = report[f"replicas_{replicas}"] = measure(replicas, rate, options)
        if replicas == 1:
            rate = best(rows, "offline", "samples_per_second") or rate
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(report, indent=1))
    one, many = report["replicas_1"], report[f"replicas_{options.gpus}"]
    for name, scenario, figure in (
        ("offline_over_one", "offline", "samples_per_second"),
        ("server_over_one", "server", "target_qps"),
    ):
        low, high = best(one, scenario, figure), best(many, scenario, figure)
        report[name] = high / low if low and high else None
    if options.out:
        options.out.write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

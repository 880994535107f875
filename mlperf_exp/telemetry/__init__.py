"""Power, clocks, memory and utilization, sampled by a process of its own beside the measured one.

    sampler.py    the measured process's side: starts ``python -m mlperf_exp.telemetry``, and stops it for sure
    __main__.py   that process: a line a sample into ``telemetry.jsonl``; by hand, it prints what can be read here
    nvml.py       NVIDIA GPUs, the only import of pynvml
    rapl.py       CPU packages' energy counters
    processes.py  memory and CPU time of a process and its descendants
    energy.py     ``telemetry.jsonl`` -> joules over the measured window, and whether they can be trusted
    tail.py       the last sample, for whoever looks on

``telemetry.jsonl`` begins with one line that says what is sampled and why the rest is not; then a line a sample. ``ns``
is ``time.perf_counter_ns``, one clock for all processes of a host, ``at`` is Unix seconds.
"""

from __future__ import annotations

FILE = "telemetry.jsonl"

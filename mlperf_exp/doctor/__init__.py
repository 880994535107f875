"""Whether machines are fit for a hardware profile: ``python -m mlperf_exp.doctor``, here or through any launcher.

check.py       one thing that was looked at: pass, warn or fail, with its remedy
gpu.py         GPUs, driver, memory, clocks
host.py        disk, shared memory, names
peers.py       the nodes of a job: how they meet, and what they tell each other
link.py        between two nodes: port reach, latency, bandwidth, clock offset
collective.py  all-reduce by NCCL or gloo, against the profile
report.py      the table, and doctor.json
examine.py     all of it, in order
"""

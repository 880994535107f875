"""Several nodes of one Ray on this machine, on the loopback interface; a program of its own, since a Ray reads its
settings from the environment at its import.

    python tests/sut/ray_nodes.py COUNT

Says one line of JSON: the ``address``, and of each node, the head first, the ids of its ``processes``. Ends with its
input.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ray.cluster_utils import Cluster


def main() -> None:
    count = int(sys.argv[1])
    cluster = Cluster()
    node: dict[str, Any] = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_log_monitor": False}
    nodes = [cluster.add_node(**node, include_dashboard=False)]
    nodes += [cluster.add_node(**node) for _ in range(count - 1)]
    processes = [[each.process.pid for kind in made.all_processes.values() for each in kind] for made in nodes]
    print(json.dumps({"address": cluster.address, "processes": processes}), flush=True)
    sys.stdin.read()
    for made in reversed(nodes):
        made.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


if __name__ == "__main__":
    main()

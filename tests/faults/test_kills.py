"""A record that a process writes again and again until it is killed, at any moment: always whole, nothing lost.

``MLPERF_KILLS=200`` makes it two hundred kills (``make faults`` does).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

WRITER = """
import sys
from pathlib import Path
from mlperf_exp.files import write_json
path, first = Path(sys.argv[1]), int(sys.argv[2])
for number in range(first, 10**9):
    write_json(path, {"number": number, "text": "x" * (number % 7 * 40_000)})
    print(number, flush=True)
"""


def test_a_record_survives_a_kill_at_any_moment(tmp_path: Path) -> None:
    kills, seed = int(os.environ.get("MLPERF_KILLS", "12")), random.randrange(1 << 30)
    when = random.Random(seed)
    path, said = tmp_path / "result.json", 0
    for _ in range(kills):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(said + 1)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            said = int(writer.stdout.readline())  # it has begun
            time.sleep(when.uniform(0, 0.05))
            writer.kill()
            for line in writer.stdout:
                if line.endswith("\n"):
                    said = int(line)
        found = json.loads(path.read_text())
        assert found["number"] in (said, said + 1), f"seed {seed}"  # written, and perhaps killed before it was said
        assert len(found["text"]) == found["number"] % 7 * 40_000, f"seed {seed}"
        said = found["number"]
    aside = [p for p in tmp_path.iterdir() if p != path]
    assert len(aside) <= kills, "at most one file aside is left by each kill"

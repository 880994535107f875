"""Every command of the guides that sends a job somewhere is composed, planned and rendered as it stands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[tuple[str, str]]:
    found = []
    for guide in GUIDES:
        page = guide.read_text()
        shorts = re.findall(
            r"""^    ([A-Z])=(?:"(.*)"|('.*'))$""", page, re.MULTILINE
        )  # L="...": what a guide writes once
        for name, plain, quoted in shorts:
            page = re.sub(rf'"\${name}"|\${name}\b', lambda _, text=plain or quoted: text, page)
        for block in re.findall(r"^```\w*\n(.*?)^```|((?:^    .*\n)+)", page, re.MULTILINE | re.DOTALL):
            text = re.sub(r" *\\\n *", " ", "".join(block))
            for line in text.splitlines():
                match = re.match(r"(?:\S+=\S+ )*\S*python -m (mlperf_exp(?:\.doctor)?) (.*)", line.strip())
                if match and "hydra/launcher=" in line and not re.search(r"hydra/launcher=(local|basic)\b", line):
                    found.append((guide.name, f"{match[1]} {match[2]}"))
    return found


def test_there_are_some() -> None:
    assert {guide for guide, _ in commands()} >= {"slurm.md", "a30-cluster.md", "gke-h100.md", "launchers.md"}


@pytest.mark.parametrize(("guide", "command"), commands())
def test_a_command_of_a_guide(guide: str, command: str, tmp_path: Path) -> None:
    words = [word for word in shlex.split(command, comments=True) if word not in ("...", "|")]
    module, *rest = words
    done = subprocess.run(
        [sys.executable, "-m", module, *rest, "hydra.launcher.dryrun=true", f"hydra.sweep.dir={tmp_path}/sweep"],
        cwd=tmp_path, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, f"{guide}: {command}\n{done.stderr}"
    assert "_node" in done.stdout

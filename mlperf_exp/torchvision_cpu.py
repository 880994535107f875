"""Make a CUDA build of torchvision importable beside a CPU build of torch.

Where only CUDA builds of torchvision can be had, its library ``_C.so`` cannot load without CUDA's libraries.
torchvision survives that (it then has no compiled operators) except at one place: it registers shape functions for
``nms`` and ``qnms``, which nobody has declared, and ``import torchvision`` ends with "operator torchvision::nms does
not exist". Declaring the two, without an implementation, is enough: models and transforms work, while
``torchvision.ops.nms`` still says that the compiled operators are missing, and images are decoded by Pillow.

The declaration must hold in every process of an environment, because vLLM starts fresh ones; and it must cost nothing
where torchvision is not used, because importing torch takes a second. So this file doubles as a start-up hook: a copy
of it lies in the environment's ``site-packages`` beside a ``.pth`` file that imports it and calls :func:`hook`, which
only adds a finder to ``sys.meta_path``. At its top it therefore imports nothing but a part of ``importlib``.

``python -m mlperf_exp.torchvision_cpu`` installs the hook into the running environment if, and only if, it is needed.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False  # typing itself would cost milliseconds at every interpreter start
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from pathlib import Path
    from types import ModuleType

HOOK = "_mlperf_exp_torchvision"
WATCHED = "torchvision.extension"
SYMPTOM = "operator torchvision::nms does not exist"


class OperatorFinder:
    """Finds ``torchvision.extension`` as usual, and has the operators declared once it has been run.

    That module is where torchvision tries its library, and it is imported before anything that needs an operator.
    Its own verdict (``_has_ops``) decides, so that the hook stays out of the way of a torchvision that works.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Python's finder protocol; None for every module but the watched one."""
        if name != WATCHED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_declare(module: ModuleType) -> None:
            run(module)
            if not module._has_ops():
                declare_operators()

        # On the instance: the loader keeps its type, which inspect and importlib.resources look at.
        spec.loader.exec_module = run_and_declare  # type: ignore[method-assign]
        return spec


def declare_operators() -> None:
    """Declare torchvision's ``nms`` and ``qnms`` to torch, without an implementation."""
    import torch

    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def hook() -> None:
    """Watch for the import of torchvision in this process. Called by the ``.pth`` file; costs microseconds."""
    if not any(isinstance(finder, OperatorFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, OperatorFinder())


def is_needed() -> bool:
    """True if torch is a CPU build and importing torchvision fails for want of the declaration (tried in a process)."""
    import subprocess

    check = "import torch, sys; sys.exit(3) if torch.version.cuda else None; import torchvision"
    tried = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    return tried.returncode not in (0, 3) and SYMPTOM in tried.stderr


def install(site_packages: Path) -> list[Path]:
    """Write the hook and its ``.pth`` file into ``site_packages``; returns the files."""
    from pathlib import Path

    module, start = site_packages / f"{HOOK}.py", site_packages / f"{HOOK}.pth"
    module.write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    start.write_text(f"import {HOOK}; {HOOK}.hook()\n", encoding="utf-8")
    return [module, start]


def main() -> int:
    """Install the hook where it is needed. Returns 0 if torchvision can be used afterwards, else 1."""
    import sysconfig
    from pathlib import Path

    if is_needed():
        start = install(Path(sysconfig.get_path("purelib")))[-1]
        print(f"torchvision is a CUDA build beside a CPU build of torch: its operators are declared by {start.name}")
        if is_needed():
            print("torchvision still cannot be imported", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

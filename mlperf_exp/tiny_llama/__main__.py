"""``python -m mlperf_exp.tiny_llama FOLDER``: write the tiny Llama to a folder, unless it is already there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mlperf_exp.errors import UserError
from mlperf_exp.tiny_llama import ensure


def main() -> int:
    """Build the checkpoint and print its folder; 2 where the folder will not do."""
    parser = argparse.ArgumentParser(prog="python -m mlperf_exp.tiny_llama", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the checkpoint goes")
    try:
        print(ensure(parser.parse_args().folder))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())

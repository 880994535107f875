"""``python -m mlperf_exp.importer FILE...``: bring results of other benchmarks into the experiment.

Exit status: 0 all imported and tracked; 1 MLflow could not be reached (the runs are kept); 2 the user's mistake.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mlperf_exp.credentials import has_credentials
from mlperf_exp.errors import ExperimentError, UserError
from mlperf_exp.importer.formats import FORMATS, Foreign, read
from mlperf_exp.importer.record import write


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if has_credentials(options.uri):
            remedy = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            raise UserError("--uri", "must not hold a user name or password", remedy)
        found = [(file, load(file, options.format)) for file in options.files]  # all are read before any is written
        tracking = {"enabled": not options.no_tracking, "uri": options.uri, "experiment": options.experiment}
        status = 0
        for file, results in found:
            for place, foreign in enumerate(results):
                folder = write(foreign, file, place, options.runs, tracking)
                print(f"{foreign.name}: {folder}", flush=True)
                if not options.no_tracking:
                    status |= _track(folder)
        return status
    except ExperimentError as error:
        print(f"importer: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mlperf_exp.importer", description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a JSON file of another benchmark")
    parser.add_argument("--format", default="auto", choices=["auto", *FORMATS])
    parser.add_argument("--runs", type=Path, default=Path("outputs/runs"), help="where the runs go (%(default)s)")
    parser.add_argument("--uri", default="sqlite:///outputs/mlflow.db", help="MLflow (%(default)s)")
    parser.add_argument("--experiment", default="mlperf_exp", help="MLflow's experiment (%(default)s)")
    parser.add_argument("--no-tracking", action="store_true", help="leave MLflow out")
    return parser


def load(file: Path, chosen: str) -> list[Foreign]:
    """The results of one file.

    Raises:
        UserError: it cannot be read, or holds no result that is known.
    """
    try:
        return read(json.loads(file.read_text(encoding="utf-8")), chosen)
    except OSError as error:
        raise UserError("FILE", f"{file} cannot be read: {error.strerror}", "Name a readable file") from None
    except UnicodeDecodeError:
        raise UserError("FILE", f"{file} is no text", "Name the JSON file that the benchmark wrote") from None
    except json.JSONDecodeError as error:
        problem = f"{file} is no JSON, or cut short (line {error.lineno}: {error.msg})"
        raise UserError("FILE", problem, "Name the JSON file that the benchmark wrote") from None
    except RecursionError:
        raise UserError("FILE", f"{file} is nested too deeply", "Name the JSON file that the benchmark wrote") from None
    except ValueError as error:
        raise UserError("FILE", f"{file}: {error}", "Name a result's file, or choose --format") from None


def _track(folder: Path) -> int:
    """Send it to MLflow by the same process as any run."""
    return subprocess.run([sys.executable, "-m", "mlperf_exp.track", str(folder)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

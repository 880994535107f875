"""``python -m mlperf_exp.compare FOLDER...``: one page, Markdown and CSV of many runs; exit status 3: regressions."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mlperf_exp.errors import ExperimentError, UserError

REGRESSED = 3


def main(arguments: list[str] | None = None) -> int:
    """Compare; 0: done, 1: could not be written, 2: the user's mistake, 3: worse than the baseline."""
    parser = argparse.ArgumentParser("python -m mlperf_exp.compare", description="Compare runs and sweeps on one page.")
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER", help="folders of sweeps or of runs")
    parser.add_argument("--mlflow", metavar="FILTER", help="runs of MLflow, such as: tags.model = 'llama3_8b'")
    parser.add_argument("--tracking-uri", default="sqlite:///outputs/mlflow.db", help="where MLflow is")
    parser.add_argument("--experiment", default="mlperf_exp", help="the experiment in MLflow")
    parser.add_argument(
        "--baseline", type=Path, metavar="RUN", help="folder of the run, or sweep, to hold others against"
    )
    parser.add_argument("--model", help="the model to compare, where the runs have several")
    parser.add_argument(
        "--out", type=Path, default=Path("comparison"), metavar="DIR", help="where to write (comparison)"
    )
    options = parser.parse_args(arguments)
    try:
        return compare(options)
    except ExperimentError as error:
        print(f"mlperf_exp.compare: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"mlperf_exp.compare: {error.filename or options.out}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def compare(options: argparse.Namespace) -> int:
    """Find the runs, write the files, say what was found.

    Raises:
        UserError: nothing can be compared.
    """
    from mlperf_exp.compare import baseline, find, page
    from mlperf_exp.compare.groups import group

    parts = []
    if options.baseline is not None:
        parts.append(find.as_baseline(find.in_folders([options.baseline])))
        if not parts[0].runs:
            raise UserError(
                "--baseline", f"{options.baseline} holds no run that can be compared", parts[0].left_out[0][1]
            )
    if options.mlflow is not None:
        parts.append(find.in_mlflow(options.mlflow, options.tracking_uri, options.experiment))
    if options.folders:
        parts.append(find.in_folders(options.folders))
    if not options.folders and options.mlflow is None:
        raise UserError(
            "FOLDER", "nothing to compare is named", "Name folders of sweeps or runs, or give --mlflow FILTER"
        )
    found = find.one_model(
        find.together(parts), options.model or (parts[0].runs[0].model if options.baseline else None)
    )
    for where, why in found.left_out[:20]:
        print(f"left out: {where}: {why}", file=sys.stderr)
    if len(found.left_out) > 20:
        print(f"left out: {len(found.left_out) - 20} more; the page names them all", file=sys.stderr)
    if not found.runs:
        raise UserError("FOLDER", "no run that can be compared was found", "Name folders that hold a result.json")
    groups = group(found.runs)
    for path in page.write(found, groups, options.out):
        print(path)
    against = baseline.compare(groups)
    for change in against.regressions if against else ():
        print(f"worse: {change.label}: {change.metric} {change.before} -> {change.after} ({change.why})")
    return REGRESSED if against and against.regressions else 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m mlperf_exp.submission {template,build,check}``: from runs to a package for MLPerf.

Exit status: 0 done, nothing against it; 1 something broke; 2 the user's mistake, in one line; 3 the check found
something.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlperf_exp.errors import ExperimentError, UserError
from mlperf_exp.submission import official, system, training
from mlperf_exp.submission.build import build
from mlperf_exp.submission.check import check
from mlperf_exp.submission.rules import DIVISIONS, ROUND
from mlperf_exp.submission.scenario import Finding
from mlperf_exp.submission.sources import Source, load

_FOUND = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except ExperimentError as error:
        print(f"submission: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("submission: interrupted; nothing was left half-written", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mlperf_exp.submission", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="{template,build,check}")
    sources = argparse.ArgumentParser(add_help=False)
    sources.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or its id in MLflow")
    sources.add_argument("--uri", default="sqlite:///outputs/mlflow.db", help="MLflow, for ids (%(default)s)")
    it = commands.add_parser("template", parents=[sources], help="print the file that describes the system, to fill in")
    it.set_defaults(command=_template)
    it = commands.add_parser("build", parents=[sources], help="assemble a package")
    it.add_argument("--submitter", required=True, help="the organisation's name in the package")
    it.add_argument("--division", required=True, choices=DIVISIONS)
    it.add_argument("--system", required=True, type=Path, metavar="FILE", help="what a person knows of the system")
    it.add_argument("--out", required=True, type=Path, metavar="DIR", help="the package; must not exist")
    it.add_argument("--draft", action="store_true", help="take runs that are not valid, for a look only")
    it.set_defaults(command=_build)
    it = commands.add_parser("check", help=f"apply the rules of round {ROUND} to a package")
    it.add_argument("package", type=Path, metavar="DIR")
    it.add_argument("--official", type=Path, metavar="CHECKOUT", help="let mlcommons/inference's checker judge it too")
    it.set_defaults(command=_check)
    return parser


def _template(options: argparse.Namespace) -> int:
    folders = [Path(name) for name in options.runs]
    if training.is_training(folders):
        print(training.template(folders), end="")
        return 0
    with _sources(options.runs, options.uri) as sources:
        print(system.template(sources), end="")
    return 0


def _build_training(options: argparse.Namespace, folders: list[Path], given: dict[str, Any]) -> int:
    if options.draft:
        raise UserError("--draft", "is for MLPerf Inference", "Leave it out; mlperf_exp.train.summary takes any runs")
    package = training.build(folders, options.submitter, options.division, given, options.out)
    accepted, said = training.official(package)
    print(f"{package.summary.benchmark}: {package.summary.minutes:.4f} min of {len(package.summary.runs)} runs")
    print(f"MLCommons' package checker ({package.ruleset}): {'accepted' if accepted else 'refused'} {package.root}")
    for line in said:
        print(f"- {line}")
    return 0 if accepted else _FOUND


def _build(options: argparse.Namespace) -> int:
    given = system.read(options.system)
    folders = [Path(name) for name in options.runs]
    if training.is_training(folders):
        return _build_training(options, folders, given)
    with _sources(options.runs, options.uri) as sources:
        built = build(sources, options.submitter, options.division, given, options.out, options.draft)
    for entry in built.entries:
        run = entry.performance
        print(f"{run.model}, {run.scenario}: run {run.result['run']['id']}, engine {run.engine_hash}")
    if options.draft:
        print(f"{built.folder} is a draft: {len(built.findings)} findings, see its DRAFT.md")
    else:
        print(f"{built.folder} keeps the rules of round {ROUND}, as far as they are known here")
    return 0


def _check(options: argparse.Namespace) -> int:
    found = check(options.package)
    _say(found, f"{options.package}: nothing against it by the rules of round {ROUND}")
    status = _FOUND if found else 0
    if options.official is not None:
        submitters = {path.name for name in DIVISIONS for path in sorted(options.package.glob(f"{name}/*"))}
        for submitter in sorted(submitters):
            opinion = official.run(options.package, options.official, submitter)
            print(f"MLCommons' checker on {submitter}: {'accepted' if opinion.accepted else 'refused'}")
            _say(opinion.findings, None)
            for line in opinion.summary:
                print(f"  {line}")
            status = status if opinion.accepted else _FOUND
    return status


def _say(found: Sequence[Finding], nothing: str | None) -> None:
    for finding in found:
        print(f"- {finding}")
    if not found and nothing:
        print(nothing)


@contextlib.contextmanager
def _sources(names: Sequence[str], uri: str) -> Iterator[list[Source]]:
    """The runs, those that are named by MLflow's ids fetched to a temporary folder first."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = []
        for name in dict.fromkeys(names):
            if not Path(name).exists() and re.fullmatch(r"[0-9a-f]{32}", name):
                folders.append(_fetch(name, uri, Path(scratch)))
            elif Path(name).is_dir():
                folders.append(Path(name))
            else:
                raise UserError("RUN", f"{name} is neither a folder nor an id of MLflow", "Name a run's folder")
        yield [load(folder) for folder in folders]


def _fetch(run_id: str, uri: str, scratch: Path) -> Path:
    from mlperf_exp.track.fetch import fetch

    return fetch(run_id, uri, scratch / run_id)


if __name__ == "__main__":
    sys.exit(main())

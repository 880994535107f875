"""Packages from real short runs: what they hold, what is refused, and what the rules say of a tree that was changed."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlperf_exp.submission import __main__ as cli
from mlperf_exp.submission import official, rules, scenario
from mlperf_exp.submission.check import check
from tests.submission.conftest import SYSTEM, change

OPEN = ("--submitter", "Example", "--division", "open")


@pytest.fixture
def long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round that asks for no duration: the one rule that short runs cannot keep."""
    monkeypatch.setattr(scenario, "MIN_DURATION_MS", 0)


def build(out: Path, system: Path, *words: object) -> int:
    return cli.main(["build", *map(str, words), *OPEN, "--system", str(system), "--out", str(out)])


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr; it must hold all of ``words``."""
    said = capsys.readouterr().err
    assert said.startswith("submission: ") and said.count("\n") == 1, said
    for word in words:
        assert word in said, said
    return said


def nothing_written(folder: Path) -> bool:
    return not [path for path in folder.iterdir() if "package" in path.name]


@pytest.fixture
def package(valid: Path, system: Path, tmp_path: Path, long_enough: None) -> Path:
    out = tmp_path / "package"
    assert build(out, system, valid / "offline", valid / "server") == 0
    return out


def result_of(package: Path, name: str) -> Path:
    return package / "open" / "Example" / "results" / "test-system" / "llama3_tiny" / name


def test_the_tree(package: Path, valid: Path) -> None:
    top = package / "open" / "Example"
    assert json.loads((top / "model_mapping.json").read_text()) == {"llama3_tiny": "llama3.1-8b"}
    description = json.loads((top / "systems" / "test-system.json").read_text())
    assert set(description) == set(rules.FIELDS) and len(description) == 35
    assert description["submitter"] == "Example" and description["division"] == "open"
    assert description["system_type"] == "datacenter" and description["accelerators_per_node"] == "0"
    environment = json.loads((valid / "server" / "result.json").read_text())["environment"]
    assert description["host_processor_model_name"] == environment["cpu"]
    for name in ("Offline", "Server"):
        folder, run = result_of(package, name), valid / name.lower()
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert found >= {
            "user.conf", "README.md", "measurements.json", "accuracy/accuracy.txt", "accuracy/mlperf_log_accuracy.json",
            "accuracy/mlperf_log_detail.txt", "accuracy/mlperf_log_summary.txt", "TEST06/verify_accuracy.txt",
            "performance/run_1/mlperf_log_detail.txt", "performance/run_1/mlperf_log_summary.txt",
            "TEST06/accuracy/mlperf_log_accuracy.json",
        }  # fmt: skip
        whole = (run / "accuracy" / "mlperf_log_accuracy.json").read_bytes()
        said = (folder / "accuracy" / "accuracy.txt").read_text()
        assert f"hash={hashlib.sha256(whole).hexdigest()}" in said.splitlines()
        assert "'rouge1': " in said and "np.float" not in said
        assert (folder / "accuracy" / "mlperf_log_accuracy.json").stat().st_size <= 10 * 1024
        written = json.loads((folder / "measurements.json").read_text())
        assert set(written) == set(rules.MEASUREMENTS) and all(written.values())
        assert "target_qps" in (folder / "user.conf").read_text()
        config = yaml.safe_load((top / "src" / "llama3_tiny" / name / "config.yaml").read_text())
        assert config["model"]["name"] == "llama3_tiny"
    assert check(package) == []
    assert not [path for path in package.rglob("*") if path.is_symlink()]


def test_a_long_log_is_cut_to_its_ends() -> None:
    from mlperf_exp.submission.tree import truncated

    log = bytes(range(256)) * 400
    cut = truncated(log)
    assert len(cut) <= 10 * 1024 and cut.startswith(log[:4096]) and cut.endswith(log[-4096:]) and b"..." in cut
    assert truncated(log[:10_000]) == log[:10_000]


def test_short_runs_break_the_rule_of_duration_and_no_other(
    valid: Path, system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "package"
    assert build(out, system, valid / "offline", valid / "server") == 2
    refused(capsys, "a short run: min_duration is 0 s, the round asks for 600 s")
    assert nothing_written(tmp_path)
    assert build(out, system, "--draft", valid / "offline", valid / "server") == 0
    found = [finding for finding in check(out) if finding.where != "DRAFT.md"]
    assert len(found) == 2 and all("a short run" in finding.problem for finding in found)
    capsys.readouterr()
    assert cli.main(["check", str(out)]) == 3
    assert "the package is a draft" in capsys.readouterr().out
    assert "a short run" in (out / "DRAFT.md").read_text()


def test_the_same_package_from_mlflow(
    runs: Path, system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [json.loads((runs / name / "mlflow_run.json").read_text())["mlflow_run_id"] for name in ("offline", "server")]
    uri = f"sqlite:///{runs}/mlflow.db"
    out = tmp_path / "package"
    assert build(out, system, "--draft", "--uri", uri, *ids) == 0, capsys.readouterr().err
    assert (result_of(out, "Server") / "accuracy" / "accuracy.txt").exists()
    capsys.readouterr()
    assert build(tmp_path / "package2", system, "--uri", uri, "0" * 32) == 2
    refused(capsys, "does not give run")
    assert build(tmp_path / "package2", system, "--uri", f"sqlite:///{tmp_path}/none.db", "0" * 32) == 2
    refused(capsys, "there is no MLflow database")


def test_runs_that_are_not_valid(runs: Path, system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(tmp_path / "package", system, runs / "offline") == 2
    refused(capsys, "offline is not valid: ", "--draft")
    assert nothing_written(tmp_path)


def test_the_closed_division_wants_closed_runs(
    valid: Path, system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "package"
    closed = ["build", str(valid / "offline"), "--submitter", "Example", "--division", "closed"]
    closed += ["--system", str(system), "--out", str(out)]
    assert cli.main(closed) == 2
    refused(capsys, "judged by the open division's rules")
    change(valid / "offline", lambda r: r["plan"]["config"].update(division="closed"))
    assert cli.main(closed) == 2
    refused(capsys, "llama3_tiny, which is no MLPerf benchmark's model")

    def as_llama(result: dict[str, Any]) -> None:
        result["plan"]["config"]["division"] = "closed"
        result["plan"]["config"]["model"]["name"] = "llama3_8b"

    change(valid / "offline", as_llama)
    assert cli.main(closed) == 2
    refused(capsys, "llama3.1-8b lacks Server or Interactive, which the closed division asks of a datacenter system")
    change(valid / "server", as_llama)
    assert cli.main(["build", str(valid / "server"), *closed[1:], "--draft"]) == 0
    found = {(finding.where.rpartition("results/")[2], finding.problem) for finding in check(tmp_path / "package")}
    server = "test-system/llama3.1-8b/Server"
    assert any(where == f"{server}/accuracy" and "ROUGE1" in problem for where, problem in found)
    # the servers of these runs give no ids for first tokens
    assert any(where == f"{server}/TEST06" and "First token check pass: False" in problem for where, problem in found)
    shutil.rmtree(next((tmp_path / "package").rglob("Server/TEST06")))
    assert any("TEST06 was not run" in finding.problem for finding in check(tmp_path / "package"))


def test_what_a_person_must_say_is_asked_for_at_once(
    valid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], long_enough: None
) -> None:
    assert cli.main(["template", str(valid / "offline")]) == 0
    template = capsys.readouterr().out
    path = tmp_path / "system.yaml"
    path.write_text(template)
    assert build(tmp_path / "package", path, valid / "offline") == 2
    said = refused(capsys, "fields must say something and are empty")
    empty = [name for name, needed in rules.FIELDS.items() if needed and f"\n{name}:" in template]
    assert len(empty) >= 9 and all(name in said for name in empty)
    values = yaml.safe_load(template)
    path.write_text(yaml.safe_dump({name: value or SYSTEM.get(name) for name, value in values.items()}))
    assert build(tmp_path / "package", path, valid / "offline") == 0
    assert "# framework: vLLM" in template
    change(valid / "offline", lambda result: result["plan"]["config"]["backend"].update(name="torch"))
    assert cli.main(["template", str(valid / "offline")]) == 0
    assert "# framework: PyTorch" in capsys.readouterr().out, "vLLM is installed there, but has no part in it"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("status: soon", "Allowed: available; preview; rdi"),
        ("colour: blue", "fields that there are not: colour"),
        ("a: [", "is no YAML"),
        ("- a", "holds no fields"),
        ("system_id: ../../etc", "cannot stand in a path"),
    ],
)
def test_wrong_descriptions(
    valid: Path, tmp_path: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "system.yaml"
    path.write_text(text if text.startswith(("a:", "- a")) else json.dumps({**SYSTEM, **yaml.safe_load(text)}))
    assert build(tmp_path / "package", path, valid / "offline") == 2
    refused(capsys, says)
    assert nothing_written(tmp_path)


def without_accuracy(run: Path) -> Path:
    """The run as if it had measured its speed alone."""
    shutil.rmtree(run / "accuracy")

    def strip(result: dict[str, Any]) -> None:
        result["artifacts"] = [item for item in result["artifacts"] if not item["path"].startswith("accuracy/")]

    return change(run, strip)


def other_engine(result: dict[str, Any]) -> None:
    result["run"]["engine_hash"] = "0" * 16
    result["plan"]["engine"] = {"max_num_seqs": 7}


def test_scenarios_may_be_tuned_differently(valid: Path, system: Path, tmp_path: Path, long_enough: None) -> None:
    """Each with an engine of its own, on which its own accuracy was measured."""
    change(valid / "server", other_engine)
    out = tmp_path / "package"
    assert build(out, system, valid / "offline", valid / "server") == 0
    assert check(out) == []
    assert "`max_num_seqs`: `7`" in (result_of(out, "Server") / "README.md").read_text()
    assert "`max_num_seqs`: `7`" not in (result_of(out, "Offline") / "README.md").read_text()


def test_engines_mixed_inside_one_scenario(
    valid: Path, system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], long_enough: None
) -> None:
    offline, server = valid / "offline", without_accuracy(valid / "server")
    change(server, other_engine)
    assert build(tmp_path / "package", system, offline, server) == 2
    mixed = f"one scenario may not mix engines: {offline} did, on another engine (max_num_seqs is 7 and None)"
    refused(capsys, f"{server} measured no accuracy, and {mixed} (engine {'0' * 16})")

    def taken_over(result: dict[str, Any]) -> None:
        result["verdict"]["accuracy"]["reused"] = {"folder": "outputs/runs/first/accuracy"}

    change(server, taken_over)
    assert build(tmp_path / "package", system, offline, server) == 2
    refused(capsys, "Give the run that it was taken over from too, outputs/runs/first")
    assert nothing_written(tmp_path)


def test_mixed_systems_and_doubled_scenarios(
    valid: Path, system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offline, server = valid / "offline", valid / "server"
    again = Path(shutil.copytree(server, valid / "again"))
    assert build(tmp_path / "package", system, server, again) == 2
    refused(capsys, "two runs of llama3_tiny, Server", str(server), str(again))
    change(again, lambda r: r["environment"]["packages"].update(torch="1.0"))
    assert build(tmp_path / "package", system, offline, again) == 2
    refused(capsys, "ran on different systems: torch is", "and 1.0")
    assert nothing_written(tmp_path)


def test_accuracy_of_another_run_on_the_same_engine(
    valid: Path, system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], long_enough: None
) -> None:
    offline, server = valid / "offline", without_accuracy(valid / "server")
    assert build(tmp_path / "package", system, server) == 2
    refused(capsys, "measured no accuracy", "scenario.mode=both")
    assert build(tmp_path / "package", system, server, offline) == 0
    one, two = (result_of(tmp_path / "package", name) / "accuracy" / "accuracy.txt" for name in ("Offline", "Server"))
    assert one.read_text() == two.read_text()
    assert "by run `offline`" in (result_of(tmp_path / "package", "Server") / "README.md").read_text()


def corrupt_detail(run: Path) -> None:
    path = run / "performance" / "mlperf_log_detail.txt"
    path.write_bytes(path.read_bytes()[:-700])


def corrupt_accuracy_detail(run: Path) -> None:
    path = run / "accuracy" / "mlperf_log_detail.txt"
    path.write_bytes(path.read_bytes()[:-20])


def other_round(run: Path) -> None:
    path = run / "performance" / "mlperf_log_detail.txt"
    path.write_text(path.read_text().replace("2085463073848966840", "1780908523862526354"))


def edit_answer(run: Path) -> None:
    path = run / "accuracy" / "mlperf_log_accuracy.json"
    rows = json.loads(path.read_text())
    rows[3]["data"] = rows[3]["data"][:-8]
    path.write_text(json.dumps(rows))


def drop_answers(run: Path) -> None:
    path = run / "accuracy" / "mlperf_log_accuracy.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:-5]))


def cut_answers(run: Path) -> None:
    path = run / "accuracy" / "mlperf_log_accuracy.json"
    path.write_bytes(path.read_bytes()[:5000])


BROKEN = {
    "a cut log": (corrupt_detail, "mlperf_log_detail.txt is cut short"),
    "a cut accuracy log": (corrupt_accuracy_detail, "mlperf_log_detail.txt is cut short"),
    "another round": (other_round, "is of another round: qsl_rng_seed is 1780908523862526354"),
    "an edited answer": (edit_answer, "is not the one in queries.parquet"),
    "answers taken out": (drop_answers, "has 67 answers, and queries.parquet 72 queries"),
    "cut answers": (cut_answers, "is cut short or broken"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_logs(valid: Path, system: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    how, says = BROKEN[name]
    how(valid / "server")
    assert build(tmp_path / "package", system, valid / "server") == 2
    refused(capsys, "was changed after the run: its SHA-256 is not the one in result.json")

    def consistent(result: dict[str, Any]) -> None:  # whoever edits a log may edit its digest too
        for item in result["artifacts"]:
            item["sha256"] = hashlib.sha256((valid / "server" / item["path"]).read_bytes()).hexdigest()

    change(valid / "server", consistent)
    assert build(tmp_path / "package", system, valid / "server") == 2
    refused(capsys, says)
    assert nothing_written(tmp_path)


def test_runs_that_are_missing_failed_or_foreign(
    valid: Path, system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = valid / "server"
    for path, says in ((tmp_path / "nowhere", "neither a folder nor an id"), (tmp_path, "it has no result.json")):
        assert build(tmp_path / "package", system, path) == 2
        refused(capsys, says)
    record = (run / "result.json").read_text()
    for how, says in (
        (lambda r: r["run"].update(status="failed", error="the engine died"), "has failed: the engine died"),
        (lambda r: r["run"].pop("engine_hash"), "does not say which engine"),
        (lambda r: r["run"].update(foreign="GuideLLM"), "was imported from GuideLLM"),
        (lambda r: r["plan"]["config"]["model"].update(benchmark=None), "is no MLPerf benchmark"),
        (lambda r: r.pop("artifacts"), "is cut short or no record of a run"),
    ):
        (run / "result.json").write_text(record)
        change(run, how)
        assert build(tmp_path / "package", system, run) == 2
        refused(capsys, says)
    (run / "result.json").write_text(record[:1000])
    assert build(tmp_path / "package", system, run) == 2
    refused(capsys, "is cut short or no record of a run")
    (run / "result.json").write_text(record)
    (run / "performance" / "user.conf").unlink()
    assert build(tmp_path / "package", system, run) == 2
    refused(capsys, "performance/user.conf is missing")
    assert nothing_written(tmp_path)


def test_links_that_lead_out_of_a_run(
    valid: Path, system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = valid / "server" / "performance" / "mlperf_log_summary.txt"
    outside = tmp_path / "outside.txt"
    shutil.move(log, outside)
    log.symlink_to(outside)
    assert build(tmp_path / "package", system, valid / "server") == 2
    refused(capsys, "leads out of the run's folder")


def without_rights() -> None:
    """Give up root's right to read and write everything, which the program started next then lacks; no-op for others.

    From then on a file's mode counts for its owner, too.
    """
    drop, override, read_search = 24, 1, 2  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    for right in (override, read_search):
        ctypes.CDLL(None).prctl(drop, right, 0, 0, 0)


def as_others(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)], preexec_fn=without_rights, capture_output=True, text=True, timeout=600
    )


@pytest.mark.parametrize("closed", ["accuracy", "performance/mlperf_log_detail.txt", "result.json", "."])
def test_a_run_without_rights(valid: Path, system: Path, tmp_path: Path, closed: str) -> None:
    run = valid / "server"
    locked = run / closed
    mode = locked.stat().st_mode
    locked.chmod(0)
    try:
        seen = as_others(
            "-c", f"import os; os.listdir({str(locked)!r})" if locked.is_dir() else f"open({str(locked)!r})"
        )
        if seen.returncode == 0:
            pytest.skip("this user may read what has no rights, and cannot give that up")
        done = as_others(
            "-m", "mlperf_exp.submission", "build", run, *OPEN, "--system", system, "--out", tmp_path / "package"
        )
    finally:
        locked.chmod(mode)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "cannot be read: Permission denied" in done.stderr
    assert nothing_written(tmp_path)


def test_a_place_without_rights(valid: Path, system: Path, tmp_path: Path, package: Path) -> None:
    place = tmp_path / "closed"
    place.mkdir(mode=0o500)
    if as_others("-c", f"open({str(place / 'file')!r}, 'w')").returncode == 0:
        pytest.skip("this user may write where there are no rights, and cannot give that up")
    done = as_others(
        "-m",
        "mlperf_exp.submission",
        "build",
        valid / "server",
        *OPEN,
        "--system",
        system,
        "--out",
        place / "it",
        "--draft",
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"{place / 'it'} cannot be written: Permission denied" in done.stderr
    locked = result_of(package, "Server") / "accuracy"
    locked.chmod(0)
    try:
        checked = as_others("-m", "mlperf_exp.submission", "check", package)
    finally:
        locked.chmod(0o755)
    assert checked.returncode == 2
    assert checked.stderr.count("\n") == 1
    assert "accuracy cannot be read: Permission denied" in checked.stderr


def test_a_run_without_rights_for_anybody(
    valid: Path, system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.read_text

    def denied(path: Path, *args: Any, **kwargs: Any) -> str:
        if path.name == "result.json":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", denied)
    assert build(tmp_path / "package", system, valid / "server") == 2
    refused(capsys, "result.json cannot be read: Permission denied")


def test_a_folder_that_exists_and_a_full_disk(
    valid: Path, system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "package"
    out.mkdir()
    assert build(out, system, valid / "server") == 2
    refused(capsys, "exists", "Name a folder that does not exist yet")
    out.rmdir()

    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("mlperf_exp.submission.tree.shutil.copyfile", full)
    assert build(out, system, valid / "server") == 2
    refused(capsys, "No space left on device")
    assert nothing_written(tmp_path)


def found(package: Path) -> str:
    return "\n".join(map(str, check(package)))


def test_rules_on_a_changed_tree(package: Path) -> None:
    offline, top = result_of(package, "Offline"), package / "open" / "Example"
    (package / "open" / "Other").mkdir()
    assert "it holds 2 submitters (Example, Other)" in found(package)
    (package / "open" / "Other").rmdir()
    text = offline / "accuracy" / "accuracy.txt"
    said = text.read_text()
    text.write_text(said.replace("hash=", "digest="))
    assert "accuracy.txt has no hash" in found(package)
    text.write_text(said.replace("'rouge2'", "'rouge_two'"))
    assert "does not say ROUGE2" in found(package)
    text.write_text(said)
    log = offline / "accuracy" / "mlperf_log_accuracy.json"
    cut = log.read_bytes()
    log.write_bytes(bytes(11_000))
    assert "has 11,000 bytes, 10,240 are allowed" in found(package)
    log.write_bytes(cut)
    (offline / "measurements.json").write_text('{"retraining": "No"}')
    assert "says nothing on input_data_types" in found(package)
    (offline / "README.md").write_text("")
    assert "README.md is empty" in found(package)
    description = top / "systems" / "test-system.json"
    values = json.loads(description.read_text())
    description.write_text(json.dumps({**values, "cooling": "", "submitter": "Other", "status": "soon"}))
    assert "fields must say something: cooling" in found(package)
    assert "submitter is 'Other', the folder says 'Example'" in found(package)
    assert "status is 'soon'" in found(package)
    description.unlink()
    assert "test-system.json: is missing" in found(package)
    description.write_text(json.dumps(values))
    (top / "systems" / "unused.json").write_text("{}")
    assert "describes a system without results" in found(package)
    detail = offline / "performance" / "run_1" / "mlperf_log_detail.txt"
    whole = detail.read_text()
    for old, new, says in (
        (
            '"result_validity", "value": "VALID"',
            '"result_validity", "value": "INVALID"',
            "LoadGen calls the run INVALID",
        ),
        ('"num_errors", "value": 0', '"num_errors", "value": 3', "LoadGen logged 3 errors"),
        ('"effective_scenario", "value": "Offline"', '"effective_scenario", "value": "Server"', "the log is of Server"),
        ("16159082839903944936", "1", "of another round: schedule_rng_seed is 1"),
        ('_count", "value": 72', '_count", "value": 7', "the load drew from 7 samples, the round asks for 72"),
        ('use_token_latencies", "value": true', 'use_token_latencies", "value": false', "did not time tokens"),
        ("PerformanceOnly", "AccuracyOnly", "the log is of AccuracyOnly and not of PerformanceOnly"),
    ):
        assert old in whole, old
        detail.write_text(whole.replace(old, new))
        assert says in found(package), (says, found(package))
    detail.write_text(whole)
    server = result_of(package, "Server") / "performance" / "run_1" / "mlperf_log_detail.txt"
    lines = server.read_text().splitlines()
    slow = [
        line.replace('"value": ', '"value": 9000')
        if "first_token_99.00_percentile" in line and "result_" in line
        else line
        for line in lines
    ]
    server.write_text("\n".join(slow) + "\n")
    assert "TTFT p99" in found(package) and "is not below the 2,000 ms of Server" in found(package)
    shutil.move(result_of(package, "Server"), result_of(package, "Interactive"))
    assert "500 ms of Interactive" in found(package)  # which MLCommons' checker holds against the server's bounds
    mapping = top / "model_mapping.json"
    mapping.write_text('{"llama3_tiny": "resnet50"}')  # a folder's name; the checker breaks on it in a mapping
    assert "llama3_tiny: is no benchmark of the round" in found(package)
    mapping.write_text('{"llama3_tiny": "resnet"}')
    assert "is no benchmark of the round" not in found(package)
    mapping.unlink()
    assert "llama3_tiny: is no benchmark of the round" in found(package)


def test_links_in_a_package(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (package / "open" / "Example" / "src" / "all").symlink_to("/etc")
    (only,) = check(package)
    assert "is a link to /etc, out of the package" in str(only)
    assert cli.main(["check", str(package)]) == 3


def test_what_is_no_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(tmp_path / "nothing")]) == 2
    refused(capsys, "is no folder")
    assert cli.main(["check", str(tmp_path)]) == 2
    refused(capsys, "neither closed/ nor open/")


def test_edge_benchmarks_want_their_scenarios() -> None:
    edge = rules.BENCHMARKS["llama3.1-8b-edge"]
    assert edge.missing("edge", {"Offline"}) == ["SingleStream"]
    assert edge.missing("edge", {"Offline", "SingleStream"}) == []
    assert edge.scenarios("edge") == ("SingleStream", "Offline")
    both = rules.BENCHMARKS["llama3.1-8b"]
    assert both.missing("datacenter", {"Offline"}) == ["Server or Interactive"]
    assert both.missing("datacenter,edge", {"Offline", "Interactive"}) == []


CHECKER = """
import sys, logging
logging.basicConfig(level=logging.INFO)
log = logging.getLogger("main")
log.info("Results=0")
log.error("%s Test duration less than 600s in user config. expected=%s, found=%s", "open/X/detail.txt", 600000, 2000)
log.error("Some performance checks Checks failed for: x")
log.warning("open/X/acc accuracy not met: expected=38.391408, found=1.5")
log.error("something that nobody has seen yet")
log.error("SUMMARY: submission has errors")
sys.exit(1)
"""


def stand_in(folder: Path, text: str) -> Path:
    """A checkout whose checker says what the test wants: faults of the real one cannot be had at will."""
    place = folder / "checkout" / "tools" / "submission" / "submission_checker"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("")
    (place / "main.py").write_text(text)
    return folder / "checkout"


def test_the_official_checkers_words_are_translated(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout = stand_in(tmp_path, CHECKER)
    assert cli.main(["check", str(package), "--official", str(checkout)]) == 3
    said = capsys.readouterr().out
    assert "MLCommons' checker on Example: refused" in said
    assert "open/X/detail.txt: a short run: min_duration is 2000 ms, the round wants 600000 ms." in said
    assert "open/X/acc: accuracy 1.5 is below 38.391408" in said
    assert "MLCommons' checker: something that nobody has seen yet" in said
    assert "Some performance checks" not in said


def test_an_official_checker_that_is_not_there_or_breaks(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", str(package), "--official", str(tmp_path)]) == 2
    refused(capsys, "holds no tools/submission/submission_checker")
    checkout = stand_in(tmp_path, "raise KeyError('v6.1')")
    assert cli.main(["check", str(package), "--official", str(checkout)]) == 1
    refused(capsys, "MLCommons' checker broke (status 1): KeyError: 'v6.1'")


@pytest.mark.skipif("MLCOMMONS_INFERENCE" not in os.environ, reason="MLCOMMONS_INFERENCE names no checkout")
def test_mlcommons_own_checker_says_what_we_say_of_short_runs(valid: Path, system: Path, tmp_path: Path) -> None:
    """It must find the duration and, its round being no smaller for tests, the sizes; and nothing else."""
    out = tmp_path / "package"
    assert build(out, system, "--draft", valid / "offline", valid / "server") == 0
    opinion = official.run(out, Path(os.environ["MLCOMMONS_INFERENCE"]), "Example")
    assert not opinion.accepted
    said = {finding.problem.split(":")[0].split(" from ")[0].split(" covers ")[0] for finding in opinion.findings}
    assert "a short run" in said
    assert said <= {"a short run", "the load drew", "accuracy"} | {p for p in said if p.startswith("accuracy ")}


def test_the_round_agrees_with_loadgen_and_the_checker_where_it_is_at_hand() -> None:
    """The seeds are those that the installed LoadGen runs with; the real runs of this file have logged them."""
    if "MLCOMMONS_INFERENCE" not in os.environ:
        pytest.skip("MLCOMMONS_INFERENCE names no checkout to compare the tables with")
    sys.path.insert(0, str(Path(os.environ["MLCOMMONS_INFERENCE"]) / "tools" / "submission"))
    try:
        from submission_checker import constants
    finally:
        sys.path.pop(0)
    theirs = constants.MODEL_CONFIG[rules.ROUND]
    assert theirs["seeds"] == rules.SEEDS
    assert set(rules.FIELDS) == set(constants.SYSTEM_DESC_REQUIRED_FIELDS)
    assert {name for name, needed in rules.FIELDS.items() if needed} == set(
        constants.SYSTEM_DESC_MEANINGFUL_RESPONSE_REQUIRED_FIELDS
    )
    assert set(rules.MEASUREMENTS) == set(constants.SYSTEM_IMP_REQUIRED_FILES)
    for name, ours in rules.BENCHMARKS.items():
        if name == "llama3.1-8b":
            continue  # made small here; its edge twin is read by the same code
        model = theirs["model_mapping"].get(name, name)
        assert rules.MAPPED[name] == model and model in theirs["models"]
        assert theirs["dataset-size"][model] == ours.samples
        assert theirs["performance-sample-count"][model] == ours.performance_samples
        assert constants.OFFLINE_MIN_SPQ_SINCE_V4[model] == ours.offline_samples
        targets = theirs["accuracy-target"][model]
        assert [metric.least for metric in ours.metrics] == pytest.approx(list(targets[1::2]))
        tests = tuple(test for test in ("TEST01", "TEST04", "TEST06") if model in theirs[f"models_{test}"])
        assert tests == ours.tests
        assert set(ours.required.get("edge", ())) == set(theirs["required-scenarios-edge"].get(model, ()))

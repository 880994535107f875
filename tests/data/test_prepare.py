"""The preparation commands: what they make, and what they say where they cannot."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import nltk
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nltk.tokenize.punkt import PunktTrainer, save_punkt_params
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.decoders import ByteLevel

from mlperf_exp.data.cnn_dailymail import load, prompt
from mlperf_exp.data.prepare import SAMPLES, main

MODULE = [sys.executable, "-m", "mlperf_exp.data.prepare"]


def environment(tmp_path: Path, **changes: str) -> dict[str, str]:
    """No cache, no home, no network for Hugging Face's libraries."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "NLTK_")) and "proxy" not in k.lower()}
    return kept | {"HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"} | changes


def run(tmp_path: Path, command: list[str], **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env=environment(tmp_path, **changes)
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line]
    return line


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with one token a byte that puts a first token in front, as Llama's does."""
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={"<bos>": 0} | {letter: n + 1 for n, letter in enumerate(letters)}, merges=[]))
    made.add_special_tokens(["<bos>"])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = ByteLevel()
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>"})
    )
    return folder


def dataset(folder: Path, rows: int) -> Path:
    """A folder as a clone of the data set's repository has it."""
    (folder / "3.0.0").mkdir(parents=True)
    table = pa.table(
        {
            "article": [f'Article {n} — "café"\n in {{Malmö}}.' for n in range(rows)],
            "highlights": [f"Rain {n} .\nMore ." for n in range(rows)],
            "id": [str(n) for n in range(rows)],
        }
    )
    pq.write_table(table, folder / "3.0.0" / "validation-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: 3.0.0\n  data_files:\n  - split: validation\n    path: 3.0.0/validation-*\n---\n"
    )
    return folder


def make(tmp_path: Path, tokenizer: Path, rows: int, *more: str) -> subprocess.CompletedProcess[str]:
    source = dataset(tmp_path / "source", rows)
    where = ["--out", str(tmp_path / "out"), "--tokenizer", str(tokenizer), "--dataset", str(source)]
    return run(tmp_path, [*MODULE, "cnn_dailymail", *where, *more])


def test_the_full_file(tmp_path: Path, tokenizer: Path) -> None:
    pytest.importorskip("datasets", reason="the optional extra 'data' makes the file")
    done = make(tmp_path, tokenizer, SAMPLES)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "out" / "cnn_eval.json"
    assert f"dataset.path={path}" in done.stdout
    assert list(path.parent.iterdir()) == [path]  # nothing left aside
    text = path.read_text(encoding="utf-8")
    records = json.loads(text)
    assert len(records) == SAMPLES
    assert list(records[0]) == ["instruction", "input", "tok_input", "output"]
    assert text == json.dumps(records, indent=4, ensure_ascii=False)
    samples = load(path, None, None, 2540, vocab_size=257)
    encode = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode
    assert list(samples[7].tokens) == encode(prompt('Article 7 — "café"\n in {Malmö}.')).ids
    assert samples[7].tokens[0] == 0
    assert samples[7].reference == "Rain 7 .\nMore ."


def test_the_edge_file_is_shuffled_as_the_reference_does(tmp_path: Path, tokenizer: Path) -> None:
    pytest.importorskip("datasets", reason="the optional extra 'data' makes the file")
    done = make(tmp_path, tokenizer, SAMPLES, "--samples", "5000")
    assert done.returncode == 0, done.stderr
    records = json.loads((tmp_path / "out" / "sample_cnn_eval_5000.json").read_text(encoding="utf-8"))
    assert len(records) == 5000
    # What download_cnndm.py of mlcommons/inference makes of the same rows with --n-samples 5000.
    assert [int(r["output"].split()[1]) for r in records[:3]] == [1517, 10554, 910]


def test_a_data_set_with_too_few_samples_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    pytest.importorskip("datasets", reason="the optional extra 'data' makes the file")
    done = make(tmp_path, tokenizer, 100)
    assert done.returncode == 2
    assert "has 100 validation samples, not 13368" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_offline_without_the_data_set_says_what_to_copy_where(tmp_path: Path, tokenizer: Path) -> None:
    pytest.importorskip("datasets", reason="the optional extra 'data' makes the file")
    out = tmp_path / "out"
    done = run(tmp_path, [*MODULE, "cnn_dailymail", "--out", str(out), "--tokenizer", str(tokenizer)])
    line = one_line(done)
    assert line.startswith("--dataset: abisee/cnn_dailymail cannot be loaded (")
    assert f"copy cnn_eval.json from a machine that has it (MLCommons' downloader gets it, too) to {out}" in line


def test_offline_without_the_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = one_line(run(tmp_path, [*MODULE, "cnn_dailymail", "--out", str(out), "--samples", "5000"]))
    assert line.startswith("--tokenizer: meta-llama/Meta-Llama-3.1-8B-Instruct cannot be loaded (")
    assert "hf auth login" in line
    assert f"dataset.path={out}/sample_cnn_eval_5000.json" in line


def test_a_hub_that_refuses_is_not_asked_again_and_again(tmp_path: Path) -> None:
    command = [*MODULE, "cnn_dailymail", "--out", str(tmp_path / "out")]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # closed again before it is asked
    env = environment(tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{port}")
    del env["HF_HUB_OFFLINE"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env)
    assert one_line(done).startswith("--tokenizer: ")


def test_ctrl_c_in_a_download_ends_at_once_without_a_trace(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        env = environment(tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{server.getsockname()[1]}")
        del env["HF_HUB_OFFLINE"]
        command = [*MODULE, "cnn_dailymail", "--out", str(tmp_path / "out")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
            first, _ = server.accept()  # is somebody there?
            second, _ = server.accept()  # the download, which is never answered
            with first, second:
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted: nothing was written\n"


def test_without_datasets_the_extra_is_named(tmp_path: Path, tokenizer: Path) -> None:
    code = (
        "import sys; sys.modules['datasets'] = None; from mlperf_exp.data.prepare import main;"  # None: import fails
        f"sys.exit(main(['cnn_dailymail', '--out', {str(tmp_path)!r}, '--tokenizer', {str(tokenizer)!r}]))"
    )
    line = one_line(run(tmp_path, [sys.executable, "-c", code]))
    assert "datasets, which is not installed" in line
    assert 'pip install "mlperf-exp[data]"' in line


@pytest.mark.parametrize("samples", ["0", "-1", "13369"])
def test_impossible_sample_counts_are_refused(tmp_path: Path, samples: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cnn_dailymail", "--out", str(tmp_path), "--samples", samples]) == 2
    assert f"--samples: is {samples}. Choose 1 to 13368" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["cnn_dailymail", "--out", str(tmp_path / "file" / "out")]) == 2
    assert re.match(r"--out: .*file/out cannot be made \(Not a directory\)", capsys.readouterr().err)


def punkt(tmp_path: Path) -> list[str]:
    """The punkt command with one NLTK data folder only, whatever this machine has."""
    code = "import sys, nltk; nltk.data.path[:] = [sys.argv[1]]; from mlperf_exp.data.prepare import main;"
    return [sys.executable, "-c", code + "sys.exit(main(['punkt']))", str(tmp_path / "nltk_data")]


def test_punkt_that_cannot_be_had_says_what_to_copy_where(tmp_path: Path) -> None:
    (tmp_path / "nltk_data").mkdir()
    nowhere = "http://127.0.0.1:9"  # nobody listens there
    line = one_line(run(tmp_path, punkt(tmp_path), HTTPS_PROXY=nowhere, https_proxy=nowhere))
    assert line.startswith("punkt: NLTK's punkt_tab cannot be downloaded (")
    assert line.endswith(f"to {tmp_path}/nltk_data/tokenizers/punkt_tab")


def test_punkt_that_is_there_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "nltk_data"
    (root / "tokenizers" / "punkt_tab").mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(root)])
    save_punkt_params(PunktTrainer("It rained. It was late.").get_params(), str(root / "tokenizers/punkt_tab/english"))
    nowhere = "http://127.0.0.1:9"
    done = run(tmp_path, punkt(tmp_path), HTTPS_PROXY=nowhere, https_proxy=nowhere)
    assert (done.returncode, done.stderr) == (0, "")
    assert "there already" in done.stdout


def test_no_command_is_a_usage_error() -> None:
    done = subprocess.run(MODULE, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "COMMAND" in done.stderr

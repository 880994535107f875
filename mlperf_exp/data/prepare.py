"""Get what the data sets need: ``python -m mlperf_exp.data.prepare {cnn_dailymail,punkt}``.

``cnn_dailymail`` makes MLCommons' files from the Hugging Face data set. Source: mlcommons/inference,
``language/llama3.1-8b/download_cnndm.py``. ``punkt`` installs NLTK's English sentence model.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from mlperf_exp.errors import ExperimentError, UserError, missing_extra
from mlperf_exp.files import write_atomic

SAMPLES = 13368  # CNN/DailyMail 3.0.0, validation
DATASET = "abisee/cnn_dailymail"
TOKENIZER = "meta-llama/Meta-Llama-3.1-8B-Instruct"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0, 2 for the user's mistakes, 130 interrupted)."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except ExperimentError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


def cnn_dailymail(out: Path, samples: int | None, tokenizer: str, dataset: str = DATASET) -> Path:
    """Write ``cnn_eval.json``, or ``sample_cnn_eval_{samples}.json``, into the folder ``out``.

    Args:
        out: made if missing.
        samples: None: all 13,368; otherwise the first so many after the reference's shuffle (seed 42).
        tokenizer: a local folder or a Hugging Face name.
        dataset: likewise.

    Returns:
        The file, whole or not there.

    Raises:
        UserError: a package, the network, a permission or samples are missing.
    """
    if samples is not None and not 1 <= samples <= SAMPLES:
        raise UserError("--samples", f"is {samples}", f"Choose 1 to {SAMPLES}, or leave it out for all")
    path = out / ("cnn_eval.json" if samples is None else f"sample_cnn_eval_{samples}.json")
    _make_folder(out)
    _settle_network(tokenizer, dataset)
    encode = _tokenizer(tokenizer, path)
    rows = _rows(dataset, path)
    if len(rows) != SAMPLES:
        raise UserError("--dataset", f"{dataset} has {len(rows)} validation samples, not {SAMPLES}", _copy(path))
    if samples is not None:
        rows = rows.shuffle(seed=42).take(samples)
    text = _as_json(_records(rows, encode))
    try:
        write_atomic(path, text)
    except OSError as error:
        raise UserError("--out", f"{path} cannot be written ({error.strerror})", "Choose another folder") from None
    return path


def _records(rows: Any, encode: Callable[[str], list[int]]) -> Iterable[dict[str, Any]]:
    from rich.console import Console
    from rich.progress import track

    from mlperf_exp.data.cnn_dailymail import TEMPLATE, prompt

    for row in track(rows, "Tokenizing", total=len(rows), console=Console(stderr=True)):
        article = row["article"]
        yield {
            "instruction": {"llama": TEMPLATE},
            "input": article,
            "tok_input": encode(prompt(article)),
            "output": row["highlights"],
        }


def _as_json(records: Iterable[dict[str, Any]]) -> str:
    """``json.dumps(list(records), indent=4, ensure_ascii=False)``, record by record: in one go it takes gigabytes."""
    # A JSON string holds no raw line break, so that every one found is the layout's.
    parts = (json.dumps(record, indent=4, ensure_ascii=False).replace("\n", "\n    ") for record in records)
    return "[\n    " + ",\n    ".join(parts) + "\n]"


def _settle_network(*names: str) -> None:
    """Tell the Hugging Face libraries when there is no network: alone they retry for a minute, line after line.

    What is in their cache is found either way. Effective only before their first import.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if all(Path(name).is_dir() for name in names) or getproxies():
        return
    hub = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((hub.hostname or "", hub.port or 443), timeout=10).close()
    except OSError:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _tokenizer(name: str, path: Path) -> Callable[[str], list[int]]:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise missing_extra("transformers", "prepare cnn_dailymail", "data") from None
    try:
        encode: Callable[[str], list[int]] = AutoTokenizer.from_pretrained(name).encode
    except Exception as error:  # the hub, the network, a permission, a broken file: all end in the same advice
        raise UserError(
            "--tokenizer",
            f"{name} cannot be loaded ({_first_sentence(error)})",
            "Name a folder with the model's tokenizer.json, or accept the licence on the model's page and run "
            f"`hf auth login`. {_copy(path)}",
        ) from None
    return encode


def _rows(name: str, path: Path) -> Any:
    try:
        from datasets import load_dataset
    except ImportError:
        raise missing_extra("datasets", "prepare cnn_dailymail", "data") from None
    try:
        return load_dataset(name, name="3.0.0", split="validation")
    except Exception as error:  # as above
        raise UserError("--dataset", f"{name} cannot be loaded ({_first_sentence(error)})", _copy(path)) from None


def _copy(path: Path) -> str:
    return (
        f"Without access: copy {path.name} from a machine that has it (MLCommons' downloader gets it, too) to {path} "
        f"and run with dataset.path={path}"
    )


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError("--out", f"{out} cannot be made ({error.strerror})", "Choose another folder") from None


def _first_sentence(error: BaseException) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line.split(". ")[0].rstrip(".:")[:200]


def _run_cnn_dailymail(options: argparse.Namespace) -> None:
    path = cnn_dailymail(options.out, options.samples, options.tokenizer, options.dataset)
    print(f"Made {path}. Use it with: dataset=cnn_dailymail dataset.path={path}")


def _run_punkt(_: argparse.Namespace) -> None:
    from mlperf_exp.data.punkt import download, sentence_splitter

    if sentence_splitter()[1] is None:
        print("NLTK's English sentence model is there already.")
        return
    print(f"NLTK's English sentence model is now in {download()}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mlperf_exp.data.prepare", description="Get what data sets need.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    news = commands.add_parser("cnn_dailymail", help="make MLCommons' cnn_eval.json from the Hugging Face data set")
    news.add_argument("--out", type=Path, default=Path("data"), metavar="DIR", help="folder (default: data)")
    news.add_argument(
        "--samples", type=int, metavar="N", help="make sample_cnn_eval_N.json instead; the edge benchmark has 5000"
    )
    news.add_argument("--tokenizer", default=TOKENIZER, metavar="PATH_OR_NAME", help="default: %(default)s")
    news.add_argument("--dataset", default=DATASET, metavar="PATH_OR_NAME", help="default: %(default)s")
    news.set_defaults(run=_run_cnn_dailymail)
    punkt = commands.add_parser("punkt", help="install NLTK's English sentence model")
    punkt.set_defaults(run=_run_punkt)
    return parser


if __name__ == "__main__":
    sys.exit(main())

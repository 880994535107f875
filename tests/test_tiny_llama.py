"""The tiny Llama against an independent float32 decode by transformers: the golden answers are its answers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlperf_exp.data.cnn_dailymail import prompt
from mlperf_exp.errors import UserError
from mlperf_exp.tiny_llama import ARTICLES, EOS, MAX_NEW_TOKENS, STAMP, build, ensure, golden, golden_tokens
from mlperf_exp.tiny_llama.tokenizer import MAX_POSITIONS
from mlperf_exp.tiny_llama.weights import ANSWER, BITS, CONST, golay_codes

ROWS = json.loads(ARTICLES.read_text(encoding="utf-8"))
TEXTS = [row["input"] for row in ROWS]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for one another cost more than so small a model gains, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def decode(model, tokenizer, articles):
    """Plain greedy decoding, one batch padded on the left; the generated ids up to and with the end token."""
    batch = tokenizer([prompt(article) for article in articles], padding=True, padding_side="left", return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    end = tokenizer.convert_tokens_to_ids(EOS)
    rows = [row[batch["input_ids"].shape[1] :].tolist() for row in output]
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def margins(model, tokenizer, article):
    """By how much the golden token leads the next best, at every step; not above zero where it is not the best."""
    asked, answer = tokenizer.encode(prompt(article)), golden_tokens(tokenizer, article)
    with torch.inference_mode():
        logits = model(torch.tensor([asked + answer])).logits[0, len(asked) - 1 : -1].float()
    right = torch.tensor(answer)[:, None]
    return (logits.gather(1, right) - logits.scatter(1, right, -torch.inf).amax(1, keepdim=True))[:, 0]


def repeats_its_lead(tokenizer, article):
    """Whether three tokens of the lead come again later and are followed by another."""
    lead, _, rest = article.partition("\n\n")
    followers = {}
    for text in (lead, rest):
        ids = tokenizer.encode(text, add_special_tokens=False)
        for *context, follower in zip(ids, ids[1:], ids[2:], ids[3:], strict=False):
            if followers.setdefault(tuple(context), follower) != follower and text is rest:
                return True
    return False


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def spawn(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlperf_exp.tiny_llama", str(folder)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60)


def test_the_golden_token_is_the_clear_choice_at_every_step_of_every_sample(model, tokenizer):
    """By induction over the steps, greedy decoding of all samples gives their golden tokens."""
    # The logit of a right token is near 24, that of the end near 30; the closest rival of either is far below.
    assert min(margins(model, tokenizer, text).min().item() for text in TEXTS) > 4.0


def test_greedy_decoding_with_a_cache_gives_the_golden_tokens(model, tokenizer):
    some = sorted(TEXTS, key=lambda text: len(text.split("\n\n")[0]))[::14]
    assert decode(model, tokenizer, some) == [golden_tokens(tokenizer, text) for text in some]
    assert len(golden_tokens(tokenizer, some[-1])) == MAX_NEW_TOKENS


def test_golden_text_is_the_lead(tokenizer):
    end = tokenizer.convert_tokens_to_ids(EOS)
    cut = 0
    for text in TEXTS:
        tokens, lead = golden_tokens(tokenizer, text), text.split("\n\n")[0]
        assert len(tokens) <= MAX_NEW_TOKENS
        if tokens[-1] == end:
            assert golden(tokenizer, text) == lead
        else:
            cut += 1
            assert len(tokens) == MAX_NEW_TOKENS
            assert lead.startswith(golden(tokenizer, text).rstrip("\ufffd"))
    assert cut == 3  # the limit of 128 tokens is met as well


def test_no_choice_is_close_in_bfloat16(folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    assert min(margins(model, tokenizer, text).min().item() for text in TEXTS[::9]) > 4.0


def test_it_reads_a_prompt_as_long_as_its_context(model, tokenizer):
    head, *rest = TEXTS[0].split("\n\n")
    body = "\n\n".join(rest)
    long = f"{head}\n\n" + "\n\n".join([body] * 40)
    while len(tokenizer.encode(prompt(long))) > MAX_POSITIONS - MAX_NEW_TOKENS:
        long = long.rsplit("\n\n", 1)[0]
    assert len(tokenizer.encode(prompt(long))) > 3800
    assert margins(model, tokenizer, long).min() > 4.0


@pytest.mark.parametrize(
    ("name", "row", "column", "value"),
    [
        ("model.layers.1.mlp.up_proj.weight", 2 * BITS, CONST, 0.0),
        ("model.layers.0.self_attn.q_proj.weight", 0, CONST, -10.0),
        ("lm_head.weight", 1, ANSWER.start, -20.0),
    ],
    ids=["mlp", "attention", "head"],
)
def test_one_changed_weight_shows(model, tokenizer, name, row, column, value):
    with torch.no_grad():
        model.state_dict()[name][row, column] = value
    assert any(margins(model, tokenizer, text).min() <= 0 for text in TEXTS[:4])


def _projections(layers=(0, 1)):
    attention = [f"model.layers.{n}.self_attn.{p}_proj.weight" for n in layers for p in "qkvo"]
    return attention + [f"model.layers.{n}.mlp.{p}_proj.weight" for n in layers for p in ("gate", "up", "down")]


@pytest.mark.parametrize("name", _projections())
def test_every_matrix_bears_load(model, tokenizer, name):
    with torch.no_grad():
        model.state_dict()[name].zero_()
    # Two articles will do, and those that repeat words of their lead, where the mark of the lead decides.
    some = [text for n, text in enumerate(TEXTS) if n < 2 or repeats_its_lead(tokenizer, text)]
    assert any(margins(model, tokenizer, text).min() <= 0 for text in some)


def test_no_lead_repeats_three_tokens(tokenizer):
    for text in TEXTS:
        tokens = golden_tokens(tokenizer, text)
        assert max(Counter(zip(tokens, tokens[1:], tokens[2:], strict=False)).values()) == 1, text[:40]


def test_codes_are_far_apart():
    codes = torch.tensor(golay_codes())
    products = codes @ codes.T
    assert codes.shape == (2048, BITS)
    assert (products.diagonal() == BITS).all()
    assert products.fill_diagonal_(0).abs().max() == 8


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_survives_the_tokenizer(tokenizer, text):
    if "<|" in text:
        return  # special tokens are skipped on purpose
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_blank_lines_are_tokens_of_their_own(tokenizer):
    ids = tokenizer.encode(prompt("Here it is.\n\nMore."))
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.convert_ids_to_tokens(ids).count("ĊĊ") == 3


def test_the_same_bytes_in_every_process(folder, tmp_path):
    for seed, threads in (("1", "1"), ("2", "4")):
        other = tmp_path / seed
        assert spawn(other, PYTHONHASHSEED=seed, RAYON_NUM_THREADS=threads).stdout.strip() == str(other)
        assert digest(other) == digest(folder)


def test_a_current_folder_is_reused_and_an_old_one_rebuilt(folder, tmp_path):
    mine = ensure(tmp_path / "a" / "model")
    weights = mine / "model.safetensors"
    before = weights.stat().st_ino
    assert ensure(mine) == mine
    assert weights.stat().st_ino == before
    (mine / STAMP).write_text('{"fingerprint": "another"}')
    weights.write_bytes(b"old")
    assert digest(ensure(mine)) == digest(folder)
    assert [path.name for path in mine.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("stale", [False, True])
def test_processes_that_build_at_once_leave_one_whole_folder(folder, tmp_path, stale):
    target = tmp_path / "model"
    if stale:
        target.mkdir()
        (target / STAMP).write_text('{"fingerprint": "another"}')
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: spawn(target), range(4)))
    assert [(one.returncode, one.stderr) for one in done] == [(0, "")] * 4
    assert digest(target) == digest(folder)
    assert list(tmp_path.iterdir()) == [target]


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not a tiny Llama"):
        ensure(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    done = spawn(tmp_path / "file" / "model")
    assert done.returncode == 2
    assert done.stderr.startswith("model.path: cannot write")
    assert done.stderr.count("\n") == 1


def test_building_needs_no_torch(tmp_path):
    code = (
        "import sys, pathlib, mlperf_exp.tiny_llama as t; t.build(pathlib.Path(sys.argv[1]));"
        "print(sorted({'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"

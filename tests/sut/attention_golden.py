"""A whole vLLM engine on a GPU over the tiny Llama of known answers, with vLLM's own attention and with the project's.

    python tests/sut/attention_golden.py         # two to three minutes: JSON, a row a cache and a backend

Each row: ``right``, answers that are the golden tokens, of ``answers``; ``like_own``, those that are as FLASH_ATTN's.
576 sequences at once, steps of 2,048 tokens, graphs of three sizes: decodes beside prefills, and alone with spare rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

COPIES = 8  # of each article


def answers(backend: str, cache: str, model: str) -> list[list[int]]:
    from vllm import LLM, SamplingParams

    from mlperf_exp.data.cnn_dailymail import prompt
    from mlperf_exp.tiny_llama import ARTICLES, MAX_NEW_TOKENS

    engine = LLM(
        model=model, dtype="bfloat16", kv_cache_dtype=cache, attention_config={"backend": backend}, block_size=128,
        max_num_seqs=576, max_num_batched_tokens=2048, max_model_len=4096, gpu_memory_utilization=0.3,
        enable_prefix_caching=False, compilation_config={"cudagraph_capture_sizes": [1, 64, 320, 640]},
    )  # fmt: skip
    tokenizer = engine.get_tokenizer()
    texts = [row["input"] for row in json.loads(ARTICLES.read_text(encoding="utf-8"))] * COPIES
    prompts: Any = [{"prompt_token_ids": tokenizer.encode(prompt(text))} for text in texts]
    params = SamplingParams(temperature=0.0, max_tokens=MAX_NEW_TOKENS)
    return [list(answer.outputs[0].token_ids) for answer in engine.generate(prompts, params, use_tqdm=False)]


def main() -> None:
    if len(sys.argv) > 1:
        Path(sys.argv[4]).write_text(json.dumps(answers(*sys.argv[1:4])))
        return
    from transformers import AutoTokenizer

    from mlperf_exp.tiny_llama import ARTICLES, ensure, golden_tokens

    rows = []
    with tempfile.TemporaryDirectory() as name:
        model, out = ensure(Path(name) / "model"), Path(name) / "answers.json"
        tokenizer = AutoTokenizer.from_pretrained(model)
        texts = [row["input"] for row in json.loads(ARTICLES.read_text(encoding="utf-8"))]
        wanted = [golden_tokens(tokenizer, text) for text in texts] * COPIES
        for cache in ("auto", "fp8"):
            own: list[list[int]] = []
            for backend in ("FLASH_ATTN", "CUSTOM"):
                command = [sys.executable, __file__, backend, cache, str(model), str(out)]
                subprocess.run(command, check=True, timeout=300, stdout=sys.stderr)
                found = json.loads(out.read_text())
                own = own or found
                rows.append({"cache": cache, "backend": backend, "answers": len(found),
                             "right": sum(a == b for a, b in zip(found, wanted, strict=True)),
                             "like_own": sum(a == b for a, b in zip(found, own, strict=True))})  # fmt: skip
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

"""Trains the small BERT on the questions of this project, once: half a minute on a processor."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from mlperf_exp.config import ExtractiveQa
from mlperf_exp.data import squad

STEPS, BATCH = 400, 64


def ensure(folder: Path, data: Path, shape: ExtractiveQa, on_progress: Callable[[int, int], None]) -> Path:
    """A folder with ``model.safetensors`` and ``vocab.txt``, trained on ``data/train.json`` where there is none yet."""
    if (folder / "model.safetensors").is_file():
        return folder
    from safetensors.torch import save_file

    network = train(data, shape, on_progress)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / "vocab.txt", aside / "vocab.txt")
        save_file(
            {name: value.contiguous() for name, value in network.state_dict().items()}, aside / "model.safetensors"
        )
        if not folder.exists():
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def train(data: Path, shape: ExtractiveQa, on_progress: Callable[[int, int], None]) -> torch.nn.Module:
    """A trained ``BertForQuestionAnswering`` of the model's shape; the same on every run on one machine."""
    from transformers import BertConfig, BertForQuestionAnswering

    questions = squad.read(data / "train.json")
    made = squad.pieces(questions, shape, squad.tokenizer(data))
    inputs, starts, ends = _padded(made, questions, shape.max_tokens)
    config = BertConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.max_positions, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.1,  # with 0.02, meant for wide layers, narrow ones learn nothing for long
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = BertForQuestionAnswering(config).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=STEPS)
        for step in range(STEPS):
            chosen = torch.randint(len(inputs), (BATCH,))
            ids, types = inputs[chosen, :, 0], inputs[chosen, :, 1]
            logits = network(input_ids=ids, token_type_ids=types, attention_mask=inputs[chosen, :, 2])
            loss = functional.cross_entropy(logits.start_logits, starts[chosen])
            loss = loss + functional.cross_entropy(logits.end_logits, ends[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            on_progress(step + 1, STEPS)
    return network.eval()


def _padded(
    made: squad.Pieces, questions: list[squad.Question], longest: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``[samples, longest, (id, type, is there)]`` and the answer's first and last token; 0 where a piece lacks it."""
    inputs = np.zeros((len(made.tokens), longest, 3), dtype=np.int64)
    starts, ends = (np.zeros(len(made.tokens), dtype=np.int64) for _ in range(2))
    for sample, owner in enumerate(made.owners.tolist()):
        begin, end = int(made.tokens.begins[sample]), int(made.tokens.begins[sample + 1])
        inputs[sample, : end - begin, :2] = made.tokens.values[begin:end]
        inputs[sample, : end - begin, 2] = 1
        text, (answer, *_) = questions[owner].text, questions[owner].answers
        at = f" {text} ".index(f" {answer} ")
        spans = made.spans[begin:end]
        first = np.flatnonzero(spans[:, 0] == at)
        last = np.flatnonzero(spans[:, 1] == at + len(answer))
        if len(first) and len(last):
            starts[sample], ends[sample] = first[0], last[-1]
    return torch.from_numpy(inputs), torch.from_numpy(starts), torch.from_numpy(ends)

"""The tiny Llama's weights, written by hand: two layers that copy the article's lead.

The residual stream (160 wide) is divided into slots. A token is known by a code of 24 signs, a word of the extended
Golay code: two different tokens agree in at most 16 of 24 signs, so that every comparison has a known margin.

    CODE     the token's own code                                            written by the embedding
    PREV     the codes of the three tokens before it                         layer 0, attention heads 0 to 2
    BLANKS   below zero outside the lead, by how many blank lines were seen  layer 0, attention head 3
    LEAD     1 within the lead, 0 outside                                    layer 0, MLP
    FOUND    the code of the token that followed the same three before       layer 1, attention head 0
    ANSWER   FOUND, brought back to clean signs                              layer 1, MLP
    CONST, MARK, VALUE, BALLAST: a constant, what head 3 needs to know a blank line, and a filling that gives every
    embedding the same norm, so that the weights of RMSNorm can undo it.

Layer 0 sees distance by RoPE alone: with constant queries and keys, q.k is a sum of cos(frequency x (distance - d)),
which has its peak at distance d. Layer 1 compares content, in those rotary pairs that hardly turn within 4096
positions; of several equal contexts the one in the lead wins. The LM head answers to ANSWER alone. The row of the
end-of-text token answers to the code of the blank line, and more strongly than that token's own.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from mlperf_exp.tiny_llama import BOS, EOS
from mlperf_exp.tiny_llama.tokenizer import MAX_POSITIONS, VOCAB_SIZE

Array = npt.NDArray[np.float64]

HIDDEN, INTERMEDIATE, LAYERS = 160, 64, 2
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 128
ROPE_THETA = 1e21
NORM_EPS = 1e-6

ANCHORS = {"blank": "\n\n", "line": "\n", "colon": ":", "article": "Article", "summary": "Summary"}  # one token each

BITS, CONTEXT = 24, 3
CODE = slice(0, BITS)
PREV = [slice(BITS * h, BITS * (h + 1)) for h in range(1, CONTEXT + 1)]
FOUND, ANSWER = (slice(BITS * h, BITS * (h + 1)) for h in (CONTEXT + 1, CONTEXT + 2))
CONST, MARK, VALUE, BLANKS, LEAD, BALLAST = range(ANSWER.stop, ANSWER.stop + 6)
CONST_SIZE = 4.0
EMBEDDING_NORM2 = 64.0

HALF = HEAD_DIM // 2  # RoPE turns dimension j together with j + HALF
DISTANCE_PAIRS = 10  # of these frequencies the sum has no second peak within MAX_POSITIONS
DISTANCE_LOGIT = 48.0  # of one such pair, at its peak
STILL = [d for d in range(HEAD_DIM) if d % HALF >= 15]  # dimensions that turn by less than 0.05 in MAX_POSITIONS
MARK_LOGIT = 30.0
MATCH_LOGIT = 45.0  # of one equal token; a different one loses at least two thirds of it
LEAD_LOGIT = 20.0
END_FACTOR = 1.25


def golay_codes() -> Array:
    """2048 codes of 24 signs, ``[2048, 24]``: half of the extended binary Golay code, without complements.

    The product of two different codes is 8, 0 or -8, that of a code with itself 24.
    """
    generator = 0b110001110101  # x^11 + x^10 + x^6 + x^5 + x^4 + x^2 + 1
    words = []
    for message in range(1 << 12):
        word = 0
        for shift in range(12):
            if message >> shift & 1:
                word ^= generator << shift
        word = word << 1 | word.bit_count() & 1
        if not word >> (BITS - 1):  # a word or its complement has this bit
            words.append([1.0 - 2.0 * (word >> bit & 1) for bit in range(BITS)])
    return np.array(words)


def build_weights(tokenizer: Tokenizer) -> dict[str, Array]:
    """All tensors of the checkpoint under their Hugging Face names; ``[out, in]`` as torch has them."""
    ids = {name: _only_id(tokenizer, text) for name, text in ANCHORS.items()}
    ids |= {"begin": _only_id(tokenizer, BOS), "end": _only_id(tokenizer, EOS)}
    codes = golay_codes()
    # "Summary:" must be continued as "Article:" was.
    codes[ids["summary"]] = codes[ids["article"]]

    tensors = {"model.embed_tokens.weight": _embedding(codes, ids), "lm_head.weight": _head(codes, ids)}
    # Squared norm of the residual stream where each RMSNorm reads it; its weight then gives back what it was.
    norms = [EMBEDDING_NORM2]
    norms += [norms[-1] + CONTEXT * BITS]
    norms += [norms[-1], norms[-1] + BITS]
    norms += [norms[-1] + BITS]
    names = [f"model.layers.{i}.{n}" for i in range(LAYERS) for n in ("input_layernorm", "post_attention_layernorm")]
    for name, norm2 in zip([*names, "model.norm"], norms, strict=True):
        tensors[f"{name}.weight"] = np.full(HIDDEN, math.sqrt(norm2 / HIDDEN))
    for layer, (attention, mlp) in enumerate(((_look_back(), _threshold()), (_find(), _clean()))):
        tensors |= {f"model.layers.{layer}.self_attn.{name}_proj.weight": t for name, t in attention.items()}
        tensors |= {f"model.layers.{layer}.mlp.{name}_proj.weight": t for name, t in mlp.items()}
    return tensors


def _only_id(tokenizer: Tokenizer, text: str) -> int:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) != 1:
        raise ValueError(f"the tokenizer splits {text!r}: the articles do not contain it often enough")
    return ids[0]


def _embedding(codes: Array, ids: dict[str, int]) -> Array:
    table = np.zeros((VOCAB_SIZE, HIDDEN))
    table[:, CODE] = codes
    table[:, CONST] = CONST_SIZE
    # Head 3 takes the mean of VALUE over marked tokens, "Article" counting four times as much as a blank line, and
    # the beginning hardly: 0 after "Article" with one blank line so far, -0.67 with two, -3 where there was none.
    table[ids["article"], [MARK, VALUE]] = 1.0, 1.0
    table[ids["blank"], [MARK, VALUE]] = 1.0 + math.log(0.25) / MARK_LOGIT, -4.0
    table[ids["begin"], [MARK, VALUE]] = 1.0 - 4.0 / MARK_LOGIT, -3.0
    # The blank line that ends the lead counts itself, and still belongs to the lead.
    table[ids["blank"], BLANKS] = 0.6
    table[:, BALLAST] = np.sqrt(EMBEDDING_NORM2 - (table**2).sum(axis=1))
    return table


def _head(codes: Array, ids: dict[str, int]) -> Array:
    head = np.zeros((VOCAB_SIZE, HIDDEN))
    head[:, ANSWER] = codes
    head[ids["end"], ANSWER] = END_FACTOR * codes[ids["blank"]]
    head[ids["begin"]] = 0.0
    head[ids["summary"]] *= 0.9  # it shares its code with "Article", which is the likelier word
    return head


def _attention() -> dict[str, Array]:
    return {
        "q": np.zeros((HEADS * HEAD_DIM, HIDDEN)),
        "k": np.zeros((KV_HEADS * HEAD_DIM, HIDDEN)),
        "v": np.zeros((KV_HEADS * HEAD_DIM, HIDDEN)),
        "o": np.zeros((HIDDEN, HEADS * HEAD_DIM)),
    }


def _look_back() -> dict[str, Array]:
    """Layer 0: heads 0 to 2 copy the codes of the three tokens before; head 3 counts blank lines.

    Heads 0 and 1 share the first key and value head, heads 2 and 3 the second.
    """
    w = _attention()
    bits = np.arange(BITS)
    pairs = np.arange(DISTANCE_PAIRS)
    frequency = ROPE_THETA ** (-pairs / HALF)
    size = math.sqrt(DISTANCE_LOGIT * math.sqrt(HEAD_DIM)) / CONST_SIZE
    for kv in range(KV_HEADS):
        w["k"][kv * HEAD_DIM + pairs, CONST] = size
        w["v"][kv * HEAD_DIM + bits, bits] = 1.0
    for head in range(CONTEXT):
        row, phase = head * HEAD_DIM, -frequency * (head + 1)
        w["q"][row + pairs, CONST] = size * np.cos(phase)
        w["q"][row + HALF + pairs, CONST] = size * np.sin(phase)
        w["o"][np.arange(HIDDEN)[PREV[head]], row + bits] = 1.0
    counter, kv, still = CONTEXT, HEAD_DIM, HALF - 1
    w["q"][counter * HEAD_DIM + still, CONST] = MARK_LOGIT * math.sqrt(HEAD_DIM) / CONST_SIZE
    w["k"][kv + still, MARK] = 1.0
    w["v"][kv + BITS, VALUE] = 1.0
    w["o"][BLANKS, counter * HEAD_DIM + BITS] = 1.0
    return w


def _find() -> dict[str, Array]:
    """Layer 1, head 0: (this token, the two before) as query, (the three before) as key, code as value."""
    w = _attention()
    bits = np.arange(BITS)
    size = math.sqrt(MATCH_LOGIT * math.sqrt(HEAD_DIM) / BITS)
    columns = np.arange(HIDDEN)
    for place, (query, key) in enumerate(zip([CODE, *PREV], PREV, strict=False)):
        rows = np.array(STILL)[BITS * place + bits]
        w["q"][rows, columns[query]] = size
        w["k"][rows, columns[key]] = size
    row, size = STILL[CONTEXT * BITS], math.sqrt(LEAD_LOGIT * math.sqrt(HEAD_DIM))
    w["q"][row, CONST] = size / CONST_SIZE
    w["k"][row, LEAD] = size
    w["v"][bits, bits] = 1.0
    w["o"][columns[FOUND], bits] = 1.0
    return w


def _ramp(
    mlp: dict[str, Array], unit: int, source: int, target: int, edges: tuple[float, float], steepness: float
) -> None:
    """Two hidden units that add to ``target`` a ramp of ``source``: 0 below the first edge, 1 above the second."""
    for offset, (edge, sign) in enumerate(zip(edges, (1.0, -1.0), strict=True)):
        mlp["gate"][unit + offset, source] = steepness
        mlp["gate"][unit + offset, CONST] = -steepness * edge / CONST_SIZE
        mlp["up"][unit + offset, CONST] = 1.0 / CONST_SIZE
        mlp["down"][target, unit + offset] += sign / (steepness * (edges[1] - edges[0]))


def _mlp() -> dict[str, Array]:
    gate, up, down = (INTERMEDIATE, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)
    return {"gate": np.zeros(gate), "up": np.zeros(up), "down": np.zeros(down)}


def _threshold() -> dict[str, Array]:
    """Layer 0: LEAD from BLANKS."""
    mlp = _mlp()
    _ramp(mlp, 0, BLANKS, LEAD, (-0.4, -0.2), 64.0)
    return mlp


def _clean() -> dict[str, Array]:
    """Layer 1: ANSWER is the sign of FOUND: twice a ramp, less one."""
    mlp = _mlp()
    for bit in range(BITS):
        _ramp(mlp, 2 * bit, FOUND.start + bit, ANSWER.start + bit, (-0.5, 0.5), 32.0)
    mlp["down"][ANSWER] *= 2.0
    one, gate = 2 * BITS, 8.0
    mlp["gate"][one, CONST] = gate / CONST_SIZE
    mlp["up"][one, CONST] = 1.0 / CONST_SIZE
    mlp["down"][ANSWER, one] = -(1.0 + math.exp(-gate)) / gate
    return mlp


def write_weights(folder: Path, tokenizer: Tokenizer) -> None:
    """Write ``model.safetensors`` (float32), ``config.json`` and ``generation_config.json``."""
    tensors = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in build_weights(tokenizer).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    ends = {"bos_token_id": tokenizer.token_to_id(BOS), "eos_token_id": tokenizer.token_to_id(EOS)}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        **ends,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {**ends, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")

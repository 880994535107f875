"""A checkpoint of Llama 3.1 8B's shape with random fp8 weights and static scales, where the real one cannot be had.

    python benchmarks/fp8_checkpoint.py FOLDER [--layers 32]

Weights are normal with a standard deviation of 0.02, so that activations stay in range; each linear layer has a
``weight_scale`` and an ``input_scale`` as vLLM's ``fp8`` method with ``activation_scheme: static`` reads them. It
serves for speed alone: what it answers means nothing. 8.5 GB, about half a minute on a GPU host.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HIDDEN, FEED_FORWARD, VOCABULARY, HEADS, KV_HEADS, HEAD = 4096, 14336, 128256, 32, 8, 128
LINEAR = {  # name -> (out, in)
    "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
    "mlp.gate_proj": (FEED_FORWARD, HIDDEN),
    "mlp.up_proj": (FEED_FORWARD, HIDDEN),
    "mlp.down_proj": (HIDDEN, FEED_FORWARD),
}
DEVIATION, LARGEST = 0.02, 448.0  # of the weights; of float8_e4m3fn
INPUT_SCALE = 0.02  # activations up to 9


def write(folder: Path, layers: int) -> None:
    """Write ``config.json``, ``model.safetensors`` and a placeholder of a tokenizer into ``folder``."""
    import torch
    from safetensors.torch import save_file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(1)
    scale = 5 * DEVIATION / LARGEST

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32) * DEVIATION

    tensors = {
        "model.embed_tokens.weight": normal(VOCABULARY, HIDDEN).bfloat16().cpu(),
        "lm_head.weight": normal(VOCABULARY, HIDDEN).bfloat16().cpu(),
        "model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        for name, shape in LINEAR.items():
            weight = (normal(*shape) / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
            tensors[f"{prefix}{name}.weight"] = weight.cpu()
            tensors[f"{prefix}{name}.weight_scale"] = torch.tensor(scale)
            tensors[f"{prefix}{name}.input_scale"] = torch.tensor(INPUT_SCALE)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps(description(layers), indent=1))


def description(layers: int) -> dict[str, Any]:
    """``config.json``."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "vocab_size": VOCABULARY, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192},
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "quantization_config": {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    options = parser.parse_args()
    write(options.folder, options.layers)
    print(json.dumps({"folder": str(options.folder), "bytes": (options.folder / "model.safetensors").stat().st_size}))


if __name__ == "__main__":
    main()

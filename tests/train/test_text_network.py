"""The network against transformers' Llama, and its gradients where activations are computed again."""

import pytest
import torch

from mlperf_exp.train.text.network import Llama, prepared
from tests.train.test_text_order import task

SCALING = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


def tokens(length=40):
    return torch.randint(0, 1000, (2, length + 1), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scaling", [None, SCALING])
def test_the_loss_is_that_of_transformers_llama(scaling):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = task(rope_scaling=scaling, rope_theta=100.0)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            rms_norm_eps=shape.rms_norm_eps,
            max_position_embeddings=4096,
            rope_parameters={"rope_theta": shape.rope_theta, "rope_type": "default"} | (scaling or {}),
        )
    )
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = Llama(shape)
    ours.load_state_dict({name.removeprefix("model."): value for name, value in theirs.state_dict().items()})
    batch = tokens()
    torch.testing.assert_close(ours(batch).mean(), theirs(input_ids=batch, labels=batch).loss)


def test_what_is_computed_again_gives_the_same_gradients():
    torch.manual_seed(0)
    kept = Llama(task())
    again = prepared(Llama(task()), recompute=True, compiled=False)
    again.load_state_dict(kept.state_dict())
    for network in (kept, again):
        network(tokens()).mean().backward()
    for one, two in zip(kept.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_what_the_plan_counts_is_what_the_network_has():
    from hydra import compose, initialize_config_dir

    from mlperf_exp import cli

    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        for name in ("llama3_8b_pretrain", "llama3_tiny_pretrain"):
            shape = compose("config", [f"model={name}"]).model.architecture
            same = ("layers", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_dim", "vocab_size")
            with torch.device("meta"):
                network = Llama(task(**{key: shape[key] for key in same}))
            assert sum(parameter.numel() for parameter in network.parameters()) == shape.parameters

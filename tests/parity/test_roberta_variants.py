"""Variants of RoBERTa against Hugging Face's own modules: the same logits after conversion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from lawa_jax.interop import fairseq_roberta
from lawa_jax.interop.conversion import ConvertOptions, convert_trajectory
from lawa_jax.interop.run_files import read_config
from lawa_jax.models.functional import functional
from lawa_jax.models.roberta import Roberta
from lawa_jax.trajectory import open_checkpoint

SIZES = {
    **{"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 24, "max_position_embeddings": 22, "pad_token_id": 1},
}
TOKENS = np.random.default_rng(1).integers(4, 40, (2, 12)).astype(np.int32)


def trained(model):
    """Every parameter away from its first value, so that each has an effect."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def logits_of(run):
    model = jax.tree.map(jnp.asarray, open_checkpoint(run).read_tree())
    config = read_config(run)["model"]
    fields = {k: v for k, v in config.items() if k not in ("eval_seed", "mask_prob")}
    network = functional(lambda rngs: Roberta(**fields, rngs=rngs))
    return np.asarray(network.apply(model, jnp.asarray(TOKENS))[0])


def check(run, theirs):
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(TOKENS).long()).logits.numpy()
    scale = max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(logits_of(run), wanted, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize(
    "variant",
    [
        {"layer_norm_eps": 1e-5, "type_vocab_size": 1},
        {"hidden_act": "relu", "layer_norm_eps": 1e-2},
        {"hidden_act": "gelu_new", "type_vocab_size": 2},
        {"hidden_act": "silu"},
        {"hidden_act": "quick_gelu"},
        {"hidden_act": "relu2"},
        {"hidden_act": "tanh"},
    ],
    ids=lambda variant: "-".join(map(str, variant.values())),
)
def test_hugging_face(tmp_path, variant):
    config = transformers.RobertaConfig(**SIZES, **variant)
    theirs = trained(transformers.RobertaForMaskedLM(config))
    theirs.save_pretrained(tmp_path / "checkpoint-10")
    run = tmp_path / "run"
    convert_trajectory(
        tmp_path / "checkpoint-10", run, fairseq_roberta.convert, ConvertOptions(verify=True)
    )
    check(run, theirs)


_PARTS = (
    ("roberta_prelayernorm.embeddings.word_embeddings", "embed_tokens"),
    ("roberta_prelayernorm.embeddings.position_embeddings", "embed_positions"),
    ("roberta_prelayernorm.embeddings.LayerNorm", "layernorm_embedding"),
    ("roberta_prelayernorm.LayerNorm", "layer_norm"),
    ("roberta_prelayernorm.encoder.layer", "layers"),
    ("attention.self.query", "self_attn.q_proj"),
    ("attention.self.key", "self_attn.k_proj"),
    ("attention.self.value", "self_attn.v_proj"),
    ("attention.output.dense", "self_attn.out_proj"),
    ("attention.LayerNorm", "self_attn_layer_norm"),
    ("intermediate.LayerNorm", "final_layer_norm"),
    ("intermediate.dense", "fc1"),
    ("output.dense", "fc2"),
)


def test_pre_norm_under_fairseqs_names(tmp_path):
    config = transformers.RobertaPreLayerNormConfig(**SIZES, layer_norm_eps=1e-5, type_vocab_size=1)
    theirs = trained(transformers.RobertaPreLayerNormForMaskedLM(config))
    with torch.no_grad():
        theirs.roberta_prelayernorm.embeddings.token_type_embeddings.weight.zero_()
    state = {}
    for name, tensor in theirs.state_dict().items():
        if name.startswith("lm_head"):
            if "decoder" not in name:
                state[f"encoder.{name}"] = tensor
        elif "token_type" not in name:
            for old, new in _PARTS:
                name = name.replace(old, new)
            state[f"encoder.sentence_encoder.{name}"] = tensor
    torch.save({"model": state}, tmp_path / "checkpoint1.pt")
    run = tmp_path / "run"
    convert_trajectory(
        tmp_path / "checkpoint1.pt",
        run,
        lambda opened: fairseq_roberta.convert(opened, 4),
        ConvertOptions(),
    )
    assert read_config(run)["model"]["pre_norm"] is True
    check(run, theirs)

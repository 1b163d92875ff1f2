import argparse

import jax
import numpy as np
import pytest
import torch

from lawa_jax.errors import TreeMismatchError
from lawa_jax.interop import fairseq_roberta
from lawa_jax.interop.conversion import ConvertOptions, convert_trajectory
from lawa_jax.interop.export import export
from lawa_jax.models.functional import functional
from lawa_jax.models.roberta import Roberta
from lawa_jax.trajectory import open_checkpoint
from lawa_jax.trajectory.formats import torch_files
from lawa_jax.tree import named_leaves


def opened(tmp_path, content):
    torch.save(content, tmp_path / "checkpoint1.pt")
    return torch_files.read(tmp_path / "checkpoint1.pt")


def old_names(state):
    return {
        name.replace("encoder.", "decoder.", 1).replace("layernorm_embedding", "emb_layer_norm"): t
        for name, t in state.items()
    }


def test_every_leaf_of_the_model_and_no_other():
    model = functional(
        lambda rngs: Roberta(
            vocab_size=30, layers=2, width=16, ffn_width=24, heads=2, max_tokens=10, rngs=rngs
        )
    )
    shapes = jax.eval_shape(lambda: model.init(0))
    wanted = {name: leaf.shape for name, leaf in named_leaves(shapes).items()}
    assert fairseq_roberta.expected_leaves(30, 2, 16, 24, 12) == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tied", ["shared", "separate", "absent"])
@pytest.mark.parametrize("old", [False, True])
def test_round_trip(tmp_path, roberta_state, fairseq_file, dtype, tied, old):
    state = roberta_state(dtype=dtype, tied=tied)
    state = old_names(state) if old else state
    torch.save(fairseq_file(state, 1), tmp_path / "checkpoint1.pt")
    run = tmp_path / "run"
    convert_trajectory(
        tmp_path / "checkpoint1.pt", run, fairseq_roberta.convert, ConvertOptions(verify=True)
    )
    checkpoint = open_checkpoint(run)
    assert {spec.dtype for spec in checkpoint.leaves.values()} == {np.dtype(str(dtype)[6:])}
    assert checkpoint.metrics == {"epoch": 1, "val/loss": 4.5}
    assert not any("lm_head/weight" in name for name in checkpoint.leaves)
    export(str(run), tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)["model"]
    assert list(back) == list(state)
    assert all(torch.equal(back[n], t) and back[n].dtype == t.dtype for n, t in state.items())


def test_architecture(tmp_path, roberta_state, fairseq_file):
    plan = fairseq_roberta.convert(opened(tmp_path, fairseq_file(roberta_state(), 1)))
    assert plan.model == {
        **{"vocab_size": 30, "layers": 2, "width": 16},
        **{"ffn_width": 24, "heads": 2, "max_tokens": 10},
    }
    assert plan.notes == ("kept in 1 record(s), no weights: encoder.sentence_encoder.version",)
    bare = fairseq_roberta.convert(opened(tmp_path, roberta_state()))
    assert bare.model["heads"] == 1
    assert any("does not tell the attention heads" in note for note in bare.notes)
    with pytest.raises(TreeMismatchError, match="does not divide by 3 heads"):
        fairseq_roberta.convert(opened(tmp_path, roberta_state()), heads=3)


def test_tied_weights_must_be_equal(tmp_path, roberta_state):
    state = roberta_state(tied="separate")
    state["encoder.lm_head.weight"][3, 3] += 1e-3
    with pytest.raises(
        TreeMismatchError, match=r"lm_head.weight' is tied to .* must hold the same"
    ):
        fairseq_roberta.convert(opened(tmp_path, state))


def test_heads_are_ignored_by_name_and_reported(tmp_path, roberta_state):
    state = roberta_state()
    state["encoder.classification_heads.mnli.dense.weight"] = torch.ones(2, 2)
    plan = fairseq_roberta.convert(opened(tmp_path, state))
    assert plan.names.ignored == ("encoder.classification_heads.mnli.dense.weight",)
    assert any("ignored by name: encoder.classification_heads.mnli" in n for n in plan.notes)


def test_other_models(tmp_path, roberta_state):
    state = roberta_state()
    del state["encoder.lm_head.dense.bias"]
    with pytest.raises(TreeMismatchError, match=r"nothing for 'params/lm_head/dense/bias'"):
        fairseq_roberta.convert(opened(tmp_path, state))
    state = roberta_state()
    state["encoder.sentence_encoder.new.weight"] = torch.ones(1)
    with pytest.raises(TreeMismatchError, match=r"new.weight' is unknown"):
        fairseq_roberta.convert(opened(tmp_path, state))
    state = {"layer1.0.conv1.weight": torch.ones(1, 1, 1, 1)}
    with pytest.raises(TreeMismatchError, match=r"looks like a ResNet: use convert/resnet50.py"):
        fairseq_roberta.convert(opened(tmp_path, state))


def test_hugging_face_both_ways(tmp_path, roberta_state):
    torch.save({"model": roberta_state()}, tmp_path / "checkpoint1.pt")
    convert_trajectory(
        tmp_path / "checkpoint1.pt", tmp_path / "run", fairseq_roberta.convert, ConvertOptions()
    )
    export(
        str(tmp_path / "run"),
        tmp_path / "hf" / "pytorch_model.bin",
        names_for=lambda specs: fairseq_roberta.names_for(specs, "huggingface"),
    )
    there = torch.load(tmp_path / "hf" / "pytorch_model.bin", weights_only=True)
    ours = roberta_state()
    query = there["roberta.encoder.layer.1.attention.self.query.weight"]
    assert torch.equal(query, ours["encoder.sentence_encoder.layers.1.self_attn.q_proj.weight"])
    assert there["lm_head.decoder.bias"].data_ptr() == there["lm_head.bias"].data_ptr()
    assert not there["roberta.embeddings.token_type_embeddings.weight"].any()
    convert_trajectory(
        tmp_path / "hf", tmp_path / "again", fairseq_roberta.convert, ConvertOptions()
    )
    a, b = open_checkpoint(tmp_path / "run"), open_checkpoint(tmp_path / "again")
    assert a.checksums == b.checksums
    there["roberta.embeddings.token_type_embeddings.weight"][0, 0] = 1
    plan = fairseq_roberta.convert(opened(tmp_path, there))
    assert plan.model["token_types"] == 1
    assert plan.names.specs["params/embed_token_types/embedding"].shape == (1, 16)


def configured(tmp_path, state, **settings):
    """What a conversion makes of a file whose training had these settings."""
    args = argparse.Namespace(arch="roberta_base", encoder_attention_heads=2, **settings)
    return fairseq_roberta.convert(opened(tmp_path, {"args": args, "model": state}))


def test_the_configuration_of_the_file_counts(tmp_path, roberta_state):
    plan = configured(
        tmp_path,
        roberta_state(),
        activation_fn="relu",
        seed=7,
        tokens_per_sample=8,
        mask_prob=0.3,
        sample_break_mode="none",
    )
    wanted = {"activation": "relu", "head_activation": "relu", "eval_seed": 7, "mask_prob": 0.3}
    wanted["tokens_per_sample"] = 8
    assert {k: v for k, v in plan.model.items() if k in wanted} == wanted
    assert any("not used in --evaluate" in n and "break_mode none" in n for n in plan.notes)
    plain = configured(
        tmp_path, roberta_state(), activation_fn="gelu", seed=1, sample_break_mode="complete"
    )
    assert set(plain.model) == {
        *("vocab_size", "layers", "width", "ffn_width", "heads", "max_tokens")
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation_fn": "maxout"}, "activation 'maxout' is unknown; known: gelu"),
        ({"no_scale_embedding": False}, "no_scale_embedding is False"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(tmp_path, roberta_state, settings, message):
    with pytest.raises(TreeMismatchError, match=message):
        configured(tmp_path, roberta_state(), **settings)

"""RoBERTa and its training against PyTorch and Hugging Face: same weights in, same numbers out."""

import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lawa_jax.data.batching import (
    MaskedBatches,
    bucket_lengths,
    evaluation_order,
    plan_batches,
    training_order,
)
from lawa_jax.data.blocks import complete_blocks
from lawa_jax.data.dictionary import Dictionary
from lawa_jax.data.masking import FairseqMasker
from lawa_jax.data.token_files import TokenLines
from lawa_jax.models.functional import functional
from lawa_jax.models.roberta import Roberta
from lawa_jax.training.adam import adam, polynomial_decay
from lawa_jax.training.metrics import total_of
from lawa_jax.training.mlm import masked_lm_loss
from lawa_jax.training.steps import init_state, make_eval_step, make_train_step
from lawa_jax.tree import named_leaves

# importlib import mode has no sibling imports.
_spec = importlib.util.spec_from_file_location(
    "torch_roberta", Path(__file__).with_name("torch_roberta.py")
)
torch_roberta = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(torch_roberta)

SIZES = {"layers": 2, "width": 16, "ffn_width": 40, "heads": 4, "max_tokens": 48}
DICTIONARY = Dictionary.from_counts({str(i): 1 for i in range(55)})
VOCAB = len(DICTIONARY)


def dense_targets(masked):
    """fairseq's form: the original id at each target, ``<pad>`` (1) elsewhere."""
    dense = np.full_like(masked.source, 1)
    dense[masked.positions] = masked.targets
    return dense


def network(dtype=jnp.float32):
    """Without dropout, whose random numbers no other library repeats."""
    return functional(
        lambda rngs: Roberta(
            vocab_size=VOCAB,
            **SIZES,
            dropout=0.0,
            attention_dropout=0.0,
            dtype=dtype,
            param_dtype=dtype,
            rngs=rngs,
        )
    )


def random_model(scale=0.4, dtype=np.float32):
    """Weights large enough for attention and GELU to be far from linear, the padding rows too."""
    rng = np.random.default_rng(11)

    def value(path, leaf):
        noise = scale * rng.normal(size=leaf.shape)
        return (noise + (path[-1].key == "scale")).astype(dtype)

    shapes = jax.eval_shape(lambda: network().init(0))
    return jax.tree_util.tree_map_with_path(value, shapes)


def fairseq_state(model, dtype=torch.float32):
    """The same weights under fairseq's names; linear weights are [out, in] there."""
    state = {}
    for name, leaf in named_leaves(model["params"]).items():
        leaf = np.asarray(leaf)
        *path, last = name.split("/")
        prefix = "encoder." if path[0] == "lm_head" else torch_roberta.ENCODER
        weight = "bias" if last == "bias" else "weight"
        array = np.array(leaf.T if last == "kernel" else leaf)
        state[f"{prefix}{'.'.join([*path, weight])}"] = torch.tensor(array, dtype=dtype)
    return state


@pytest.fixture(scope="module")
def blocks():
    """Sixty lines of random ids in blocks of at most 48 tokens."""
    rng = np.random.default_rng(5)
    sizes = rng.integers(2, 24, 60)
    ids = rng.integers(4, VOCAB - 1, sizes.sum()).astype(np.uint16)
    ids[np.cumsum(sizes) - 1] = 2
    return complete_blocks(TokenLines(ids, sizes.astype(np.int64), "random"), 48)


@pytest.fixture(scope="module")
def forward():
    return jax.jit(lambda model, tokens: network().apply(model, tokens)[0])


@pytest.fixture(scope="module")
def batches(blocks):
    """Training batches of four blocks in one shape, a last one with padding rows among them."""
    plan = plan_batches(blocks, training_order(blocks, 0, 1), batch_size=4, lengths=(48,))
    return list(MaskedBatches(blocks, FairseqMasker(DICTIONARY), plan, seed=1, epoch=1).iterate())


def dense(batch):
    """Tokens and fairseq's dense targets as tensors."""
    targets = np.ones_like(batch["tokens"])
    for row, (places, ids) in enumerate(
        zip(batch["masked_positions"], batch["targets"], strict=True)
    ):
        targets[row, places[ids != 1]] = ids[ids != 1]
    return torch.tensor(batch["tokens"]).long(), torch.tensor(targets).long()


def close(actual, expected, tolerance, label=""):
    """Largest difference relative to the largest value."""
    actual, expected = actual.numpy(), expected.numpy()
    assert actual.shape == expected.shape, label
    worst = np.abs(actual - expected).max() / np.abs(expected).max()
    assert worst < tolerance, f"{label}: {worst}"


def test_logits_equal_torchs(forward, batches):
    model = random_model()
    # The first batch, and the last, with rows of padding only.
    for batch in (batches[0], batches[-1]):
        ours = np.asarray(forward(model, batch["tokens"]))
        tokens, _ = dense(batch)
        theirs = torch_roberta.forward(fairseq_state(model), tokens, SIZES["heads"]).numpy()
        real = batch["tokens"] != 1
        assert np.abs(theirs).max() > 3
        np.testing.assert_allclose(ours[real], theirs[real], rtol=0, atol=1e-4)


def test_logits_equal_hugging_faces(forward, batches):
    from transformers import RobertaConfig, RobertaForMaskedLM

    model = random_model()
    config = RobertaConfig(
        vocab_size=VOCAB,
        hidden_size=SIZES["width"],
        num_hidden_layers=SIZES["layers"],
        num_attention_heads=SIZES["heads"],
        intermediate_size=SIZES["ffn_width"],
        max_position_embeddings=SIZES["max_tokens"] + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        attn_implementation="eager",
    )
    theirs = RobertaForMaskedLM(config).eval()
    state = {hugging_face_name(name): x for name, x in fairseq_state(model).items()}
    embeddings = "roberta.embeddings"
    state[f"{embeddings}.token_type_embeddings.weight"] = torch.zeros(1, SIZES["width"])
    state["lm_head.decoder.weight"] = state[f"{embeddings}.word_embeddings.weight"]
    state["lm_head.decoder.bias"] = state["lm_head.bias"]
    buffers = ("position_ids", "token_type_ids")
    found = theirs.load_state_dict(state, strict=False)
    assert not found.unexpected_keys
    assert all(name.endswith(buffers) for name in found.missing_keys)
    tokens, _ = dense(batches[0])
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=(tokens != 1).long()).logits.numpy()
    ours = np.asarray(forward(model, batches[0]["tokens"]))
    real = batches[0]["tokens"] != 1
    np.testing.assert_allclose(ours[real], expected[real], rtol=0, atol=1e-4)


def hugging_face_name(name):
    for old, new in (
        ("encoder.lm_head.", "lm_head."),
        ("encoder.sentence_encoder.layers.", "roberta.encoder.layer."),
        ("encoder.sentence_encoder.embed_tokens", "roberta.embeddings.word_embeddings"),
        ("encoder.sentence_encoder.embed_positions", "roberta.embeddings.position_embeddings"),
        ("encoder.sentence_encoder.layernorm_embedding", "roberta.embeddings.LayerNorm"),
        ("self_attn.q_proj", "attention.self.query"),
        ("self_attn.k_proj", "attention.self.key"),
        ("self_attn.v_proj", "attention.self.value"),
        ("self_attn.out_proj", "attention.output.dense"),
        ("self_attn_layer_norm", "attention.output.LayerNorm"),
        ("fc1", "intermediate.dense"),
        ("fc2", "output.dense"),
        ("final_layer_norm", "output.LayerNorm"),
    ):
        name = name.replace(old, new)
    return name


def torch_gradients(state, batch):
    """Loss per masked token in nats, and its gradients by fairseq name."""
    tokens, targets = dense(batch)
    leaves = {name: x.clone().requires_grad_() for name, x in state.items()}
    total = torch_roberta.loss_sum(leaves, tokens, targets, SIZES["heads"])
    loss = total / (targets != 1).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return float(loss.detach()), dict(zip(leaves, grads, strict=True))


def test_gradients_equal_torchs(batches):
    model, loss_fn = random_model(), masked_lm_loss(network())
    value_and_gradient = jax.jit(
        jax.value_and_grad(lambda m, batch: loss_fn(m, batch, None, True), has_aux=True)
    )
    for batch in (batches[0], batches[-1]):
        (loss, _), gradient = value_and_gradient(model, batch)
        expected_loss, expected = torch_gradients(fairseq_state(model), batch)
        assert float(loss) == pytest.approx(expected_loss, rel=1e-5)
        ours = fairseq_state(gradient)
        assert ours.keys() == expected.keys()
        for name, grad in expected.items():
            # The keys' bias cancels in the softmax: its gradient is rounding and nothing else.
            if name.endswith("k_proj.bias"):
                assert ours[name].abs().max() < 1e-6
            else:
                close(ours[name], grad, 1e-3, name)


# Rates of the third to twelfth update of a schedule with four warm-up updates.
RATES = [polynomial_decay(u, peak=5e-3, warmup=4, horizon=20) for u in range(2, 12)]
HYPERPARAMETERS = {"eps": 1e-6, "weight_decay": 0.01}


def test_ten_float64_steps_equal_torchs(batches):
    model = random_model(dtype=np.float64)
    state, initial = (fairseq_state(model, torch.float64) for _ in range(2))
    theirs = torch_roberta.Adam(state, (0.9, 0.98), **HYPERPARAMETERS)
    with jax.enable_x64(True):
        step = make_train_step(
            masked_lm_loss(network(jnp.float64)), adam(0.9, 0.98, **HYPERPARAMETERS)
        )
        ours = init_state(jax.tree.map(jnp.asarray, model), adam())
        for number, rate in enumerate(RATES):
            batch = batches[number % len(batches)]
            ours, metrics = step(ours, batch, rate, jax.random.key(0))
            loss, grads = torch_gradients(state, batch)
            theirs.step(state, grads, rate)
            bits = total_of([metrics]).means()["loss"]
            assert bits == pytest.approx(loss / math.log(2), rel=1e-6), number
        found = fairseq_state(ours["model"], torch.float64)
    for name, parameter in state.items():
        close(found[name], parameter, 1e-6, name)
        # The bias of the keys has no gradient: it only decays.
        least = 1e-4 if name.endswith("k_proj.bias") else 1e-3
        assert (parameter - initial[name]).abs().max() > least, name


def test_single_float32_steps_equal_torchs(batches):
    """Each step from the same state: the moments and parameters that torch arrived at."""
    model = random_model()
    state = fairseq_state(model)
    # A larger eps than in training, so that the rounding errors of tiny gradients stay small.
    hyperparameters = {**HYPERPARAMETERS, "eps": 1e-5}
    optimizer = adam(0.9, 0.98, **hyperparameters)
    theirs = torch_roberta.Adam(state, (0.9, 0.98), **hyperparameters)
    step = make_train_step(masked_lm_loss(network()), optimizer)
    names = list(fairseq_state(model))

    def tree_of(tensors):
        """Back to our layout: the converted leaves are in the order of our own."""
        arrays = [tensors[name].numpy().copy() for name in names]
        kernels = [
            leaf.ndim == 2 and "embed" not in name
            for name, leaf in zip(names, jax.tree.leaves(model), strict=True)
        ]
        leaves = [x.T if kernel else x for x, kernel in zip(arrays, kernels, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(model["params"]), map(jnp.asarray, leaves))

    for number in range(3):
        opt_state = optimizer.init(model["params"])._replace(
            step=jnp.asarray(number, jnp.int32),
            mean=tree_of({n: m for n, (m, _) in theirs.moments.items()}),
            square=tree_of({n: v for n, (_, v) in theirs.moments.items()}),
        )
        ours = {"model": {"params": tree_of(state)}, "opt_state": opt_state}
        before = {name: x.clone() for name, x in state.items()}
        new, _ = step(ours, batches[number], RATES[number], jax.random.key(0))
        _, grads = torch_gradients(state, batches[number])
        theirs.step(state, grads, RATES[number])
        found = fairseq_state(new["model"])
        for name, parameter in state.items():
            # The gradient of the keys' bias is rounding errors, of which Adam makes steps.
            if not name.endswith("k_proj.bias"):
                close(found[name] - before[name], parameter - before[name], 1e-3, name)


def test_evaluation_in_bits_equals_fairseqs_recipe(blocks):
    """Blocks, masks, order, buckets and loss end to end, against one block at a time in torch."""
    model = random_model()
    state = fairseq_state(model, torch.float64)
    total = count = 0.0
    for index in range(len(blocks)):
        masked = FairseqMasker(DICTIONARY)(blocks[index], 1, 1, index)
        tokens, targets = (
            torch.tensor(x[None]).long() for x in (masked.source, dense_targets(masked))
        )
        total += float(torch_roberta.loss_sum(state, tokens, targets, SIZES["heads"]))
        count += int((targets != 1).sum())
    order = evaluation_order(blocks)
    lengths = bucket_lengths(blocks.sizes[order], 2)
    plan = plan_batches(blocks, order, batch_size=2, lengths=lengths)
    assert len(plan.shapes) == 2
    step = make_eval_step(masked_lm_loss(network()))
    sums = np.zeros(2)
    for batch in MaskedBatches(blocks, FairseqMasker(DICTIONARY), plan, seed=1, epoch=1).iterate():
        sums += np.asarray([float(x) for x in step(model, batch)["loss"]])
    assert sums[1] == count
    assert sums[0] / sums[1] == pytest.approx(total / count / math.log(2), rel=1e-5)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lawa_jax.models.functional import Functional, functional
from lawa_jax.models.roberta import BASE, TINY, Roberta, _attention
from lawa_jax.tree import named_leaves

VOCAB = 50
SMALL = {"layers": 2, "width": 16, "ffn_width": 24, "heads": 2, "max_tokens": 12}


def build(**changes) -> Functional:
    arguments = {"vocab_size": VOCAB, **SMALL, **changes}
    return functional(lambda rngs: Roberta(**arguments, rngs=rngs))


@pytest.fixture(scope="module")
def model():
    """Parameters far from their initial values, so that every one of them matters."""
    rng = np.random.default_rng(7)
    shapes = jax.eval_shape(lambda: build().init(0))
    return jax.tree.map(lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype), shapes)


@pytest.fixture(scope="module")
def tokens():
    """Rows of 9, 6 and 0 real tokens in 9 places."""
    ids = np.random.default_rng(0).integers(4, VOCAB, (3, 9)).astype(np.int32)
    ids[1, 6:] = 1
    ids[2] = 1
    return jnp.asarray(ids)


def logits(functional_model, model, tokens, **kwargs):
    train = kwargs.pop("train", False)

    def apply(model, tokens, kwargs):
        return functional_model.apply(model, tokens, train=train, **kwargs)[0]

    return np.asarray(jax.jit(apply)(model, tokens, kwargs))


def test_base_has_124_7_million_parameters_named_as_in_fairseq():
    shapes = jax.eval_shape(lambda: functional(_base).init(0))
    leaves = named_leaves(shapes)
    # By hand: (50265 + 514 + 2) * 768, 12 layers of 12 * 768^2 + 13 * 768, head 768^2 + 3 * 768
    # and a bias per symbol.
    layer = 12 * 768**2 + 13 * 768
    expected = (50_265 + 514 + 2) * 768 + 12 * layer + 768**2 + 3 * 768 + 50_265
    assert sum(leaf.size for leaf in leaves.values()) == expected == 124_696_665
    layer_names = {name for name in leaves if name.startswith("params/layers/11/")}
    assert layer_names == {
        f"params/layers/11/{name}"
        for module in ("q_proj", "k_proj", "v_proj", "out_proj")
        for name in (f"self_attn/{module}/kernel", f"self_attn/{module}/bias")
    } | {
        f"params/layers/11/{name}"
        for name in (
            *("self_attn_layer_norm/scale", "self_attn_layer_norm/bias"),
            *("final_layer_norm/scale", "final_layer_norm/bias"),
            *("fc1/kernel", "fc1/bias", "fc2/kernel", "fc2/bias"),
        )
    }
    assert {name for name in leaves if "layers/" not in name} == {
        "params/embed_tokens/embedding",
        "params/embed_positions/embedding",
        "params/layernorm_embedding/scale",
        "params/layernorm_embedding/bias",
        "params/lm_head/dense/kernel",
        "params/lm_head/dense/bias",
        "params/lm_head/layer_norm/scale",
        "params/lm_head/layer_norm/bias",
        "params/lm_head/bias",
    }
    assert leaves["params/embed_positions/embedding"].shape == (514, 768)


def _base(rngs):
    return Roberta(vocab_size=50_265, **BASE, rngs=rngs)


def test_initial_values_are_fairseqs():
    params = functional(lambda r: Roberta(vocab_size=3_000, **TINY, rngs=r)).init(3)["params"]
    for name, leaf in named_leaves(params).items():
        values = np.asarray(leaf)
        if name.endswith("bias"):
            assert not values.any(), name
        elif name.endswith("scale"):
            assert (values == 1).all(), name
        else:
            if name.endswith("embedding"):
                assert not values[1].any(), name
                values = np.delete(values, 1, axis=0)
            assert abs(values.std() - 0.02) < 0.001, name
            assert abs(values.mean()) < 0.001, name


def test_logits_at_masked_positions_are_those_of_the_full_path(model, tokens):
    positions = jnp.asarray([[0, 5, 3], [5, 0, 2], [0, 0, 0]], jnp.int32)
    full = logits(build(), model, tokens)
    assert full.shape == (3, 9, VOCAB)
    some = logits(build(), model, tokens, masked_positions=positions)
    expected = np.take_along_axis(full, np.asarray(positions)[:, :, None], axis=1)
    np.testing.assert_allclose(some, expected, rtol=0, atol=1e-5)


def test_padding_changes_nothing_and_gives_no_nan(model, tokens):
    full = logits(build(), model, tokens)
    alone = logits(build(), model, tokens[1:2, :6])
    np.testing.assert_allclose(full[1, :6], alone[0], rtol=0, atol=1e-5)
    assert np.isfinite(full).all()


def test_positions_skip_padding_inside_a_sequence(model):
    # The same real tokens with a gap of padding: positions do not count the gap.
    plain = logits(build(), model, jnp.asarray([[0, 9, 8, 2]], jnp.int32))
    gap = logits(build(), model, jnp.asarray([[0, 9, 1, 1, 8, 2]], jnp.int32))
    np.testing.assert_allclose(gap[0, [0, 1, 4, 5]], plain[0], rtol=0, atol=1e-5)


def test_padding_gets_finite_gradients_and_none_through_its_position(plain_value_and_gradient):
    _, gradient = plain_value_and_gradient
    assert not np.asarray(gradient["params"]["embed_positions"]["embedding"][1]).any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def value_and_gradient(functional_model, model, tokens):
    key = jax.random.key(4, impl="unsafe_rbg")  # compiles faster than the default

    def total(model):
        out, _ = functional_model.apply(model, tokens, train=True, key=key)
        return jnp.sum(jnp.sin(out[:2]))

    return jax.jit(jax.value_and_grad(total))(model)


@pytest.fixture(scope="module")
def plain_value_and_gradient(model, tokens):
    return value_and_gradient(build(), model, tokens)


@pytest.mark.parametrize("change", [{"remat": True}, {"scan": True, "remat": True}])
def test_scan_and_remat_keep_layout_values_and_gradients(
    model, tokens, plain_value_and_gradient, change
):
    value, gradient = value_and_gradient(build(**change), model, tokens)
    expected, expected_gradient = plain_value_and_gradient
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert jax.tree.structure(gradient) == jax.tree.structure(expected_gradient)
    for name, leaf in named_leaves(gradient).items():
        other = named_leaves(expected_gradient)[name]
        np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-4, err_msg=name)


def test_dropout_is_a_function_of_the_key_and_off_in_evaluation(model, tokens):
    trained = jax.jit(lambda key: build().apply(model, tokens, train=True, key=key)[0])
    first, again, other = (np.asarray(trained(jax.random.key(k))) for k in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    plain = logits(build(), model, tokens)
    assert (logits(build(), model, tokens, key=jax.random.key(0)) == plain).all()
    off = build(dropout=0.0, attention_dropout=0.0)
    np.testing.assert_allclose(logits(off, model, tokens, train=True), plain, rtol=0, atol=1e-6)


def test_attention_dropout_zeroes_at_its_rate_and_keeps_the_mean():
    rng = np.random.default_rng(0)
    shape = (64, 16, 2, 4)
    q, k = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    mask = jnp.asarray(np.arange(16) < 11)[None, None, None, :]
    # With these values the output is the sum of the probabilities that were kept.
    v = jnp.ones(shape, jnp.float32)
    kept = _attention(q, k, v, mask, 0.25, jax.random.key(0))
    assert abs(float(kept.mean()) - 1.0) < 0.01
    assert float(kept.std()) > 0.05
    # Rate 0 is jax.nn.dot_product_attention itself, padding ignored.
    v = jnp.asarray(rng.normal(size=shape), jnp.float32)
    plain = jax.nn.dot_product_attention(q, k, v, mask=mask)
    np.testing.assert_allclose(_attention(q, k, v, mask, 0.0, jax.random.key(0)), plain, atol=1e-6)


def test_bfloat16_computes_near_float32_with_float32_parameters_and_logits(model, tokens):
    exact = logits(build(), model, tokens)
    rounded = logits(build(dtype=jnp.bfloat16), model, tokens)
    assert rounded.dtype == np.float32
    error = np.abs(rounded - exact)[:2, :6]
    assert 0 < error.max() < 0.1 * np.abs(exact).max()


def test_what_a_user_can_get_wrong(model):
    with pytest.raises(ValueError, match=r"sequences of 13 tokens.*at most 12"):
        build().apply(model, jnp.zeros((1, 13), jnp.int32))
    with pytest.raises(ValueError, match="needs a PRNG key"):
        build().apply(model, jnp.zeros((1, 3), jnp.int32), train=True)
    with pytest.raises(ValueError, match="width 16 is not a multiple of heads 3"):
        build(heads=3).init(0)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), found 1.0"):
        Roberta(vocab_size=VOCAB, **SMALL, dropout=1.0, rngs=nnx.Rngs(0))

"""RoBERTa's names in fairseq (old and new) and Hugging Face, both ways.

Linear weights (out, in) -> (in, out); embeddings and norms as they are; dtypes are kept, so a
half-precision file goes back bit for bit. The output projection is tied to the token embedding: a
separate ``lm_head.weight`` has to hold the same values and is stored once.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from lawa_jax.errors import TreeMismatchError
from lawa_jax.interop.names import Constant, Conversion, Entry, Names, constant
from lawa_jax.interop.roberta_settings import read_settings
from lawa_jax.interop.rules import Rule, common_prefix, rank_fits, to_ours, to_theirs
from lawa_jax.trajectory.bits import same_bits
from lawa_jax.trajectory.formats.state_dict import StateDict
from lawa_jax.tree import LeafSpec

Style = Literal["fairseq", "huggingface"]
_EMBEDDING = "params/embed_tokens/embedding"


def _affine(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{theirs}.weight", f"params/{ours}/kernel", "linear"),
        Rule(f"{theirs}.bias", f"params/{ours}/bias"),
    ]


def _norm(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{theirs}.weight", f"params/{ours}/scale"),
        Rule(f"{theirs}.bias", f"params/{ours}/bias"),
    ]


_F = "encoder.sentence_encoder"
_L = "layers/{i}"
FAIRSEQ: tuple[Rule, ...] = (
    Rule(f"{_F}.embed_tokens.weight", _EMBEDDING),
    Rule(f"{_F}.embed_positions.weight", "params/embed_positions/embedding"),
    *_norm(f"{_F}.layernorm_embedding", "layernorm_embedding"),
    *_norm(f"{_F}.layer_norm", "layer_norm"),
    *_affine(f"{_F}.layers.{{i}}.self_attn.{{p:k|v|q|out}}_proj", f"{_L}/self_attn/{{p}}_proj"),
    *_norm(f"{_F}.layers.{{i}}.self_attn_layer_norm", f"{_L}/self_attn_layer_norm"),
    *_affine(f"{_F}.layers.{{i}}.fc{{n:1|2}}", f"{_L}/fc{{n}}"),
    *_norm(f"{_F}.layers.{{i}}.final_layer_norm", f"{_L}/final_layer_norm"),
    Rule("encoder.lm_head.bias", "params/lm_head/bias"),
    *_affine("encoder.lm_head.dense", "lm_head/dense"),
    *_norm("encoder.lm_head.layer_norm", "lm_head/layer_norm"),
)

_H = "roberta.encoder.layer.{i}"
HUGGING_FACE: tuple[Rule, ...] = (
    Rule("roberta.embeddings.word_embeddings.weight", _EMBEDDING),
    Rule("roberta.embeddings.position_embeddings.weight", "params/embed_positions/embedding"),
    Rule("roberta.embeddings.token_type_embeddings.weight", "params/embed_token_types/embedding"),
    *_norm("roberta.embeddings.LayerNorm", "layernorm_embedding"),
    *_affine(f"{_H}.attention.self.query", f"{_L}/self_attn/q_proj"),
    *_affine(f"{_H}.attention.self.key", f"{_L}/self_attn/k_proj"),
    *_affine(f"{_H}.attention.self.value", f"{_L}/self_attn/v_proj"),
    *_affine(f"{_H}.attention.output.dense", f"{_L}/self_attn/out_proj"),
    *_norm(f"{_H}.attention.output.LayerNorm", f"{_L}/self_attn_layer_norm"),
    *_affine(f"{_H}.intermediate.dense", f"{_L}/fc1"),
    *_affine(f"{_H}.output.dense", f"{_L}/fc2"),
    *_norm(f"{_H}.output.LayerNorm", f"{_L}/final_layer_norm"),
    Rule("lm_head.bias", "params/lm_head/bias"),
    *_affine("lm_head.dense", "lm_head/dense"),
    *_norm("lm_head.layer_norm", "lm_head/layer_norm"),
)

# Second names of tied tensors: name -> the one it is tied to.
_TIED = {
    "encoder.lm_head.weight": f"{_F}.embed_tokens.weight",
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
_TOKEN_TYPES = "roberta.embeddings.token_type_embeddings.weight"
_BUFFERS = ("version", "_float_tensor", "position_ids")
_HEADS = ("classification_heads.", "pooler.", "regression_head.", "classifier.")


def current_name(name: str) -> str:
    """fairseq's name of today for one of an old file.

    Example: ``decoder.sentence_encoder.emb_layer_norm.bias`` becomes
    ``encoder.sentence_encoder.layernorm_embedding.bias``.
    """
    if name.startswith("decoder."):
        name = "encoder." + name.removeprefix("decoder.")
    return name.replace(".emb_layer_norm.", ".layernorm_embedding.")


def convert(state: StateDict, heads: int | None = None) -> Conversion:
    """A RoBERTa state dict as a tree of `lawa_jax.models.roberta`.

    Args:
      state: the open file, with fairseq's or Hugging Face's names.
      heads: attention heads; by default what the file's configuration says, else width / 64.

    Raises:
      TreeMismatchError: names are missing or left over, or a tied weight differs from its twin.
    """
    prefix = common_prefix(state.specs)
    plain = {name: name.removeprefix(prefix) for name in state.specs}
    hugging_face = any(name.startswith("roberta.") for name in plain.values())
    rules = HUGGING_FACE if hugging_face else FAIRSEQ
    current = {n: p if hugging_face else current_name(p) for n, p in plain.items()}
    original = {c: name for name, c in current.items()}
    entries: list[Entry] = []
    shared: dict[str, str] = {}
    constants: dict[str, Constant] = {}
    ignored = list(state.skipped)
    unknown = []
    for name, spec in state.specs.items():
        match = to_ours(rules, current[name])
        if current[name] == _TOKEN_TYPES and not np.any(state.read(name)):
            match = None  # as published: fairseq's RoBERTa has none
        if match is not None and rank_fits(spec.shape, match.layout):
            keys = tuple(match.name.split("/"))
            entries.append(Entry(name, keys, match.layout, spec.shape, spec.dtype.name))
        elif current[name] in _TIED and _TIED[current[name]] in original:
            shared[name] = original[_TIED[current[name]]]
            _check_tied(state, name, shared[name])
        elif _is_buffer(current[name]):
            kept = constant(state, name)
            if kept is None:
                ignored.append(name)
            else:
                constants[name] = kept
        elif any(head in current[name] for head in _HEADS):
            ignored.append(name)
        else:
            unknown.append(name)
    leaves = {entry.leaf: entry.spec for entry in entries}
    model = _architecture(state, leaves, unknown, heads)
    settings = read_settings(
        state.facts.get("settings", {}),
        state.label,
        hugging_face=hugging_face,
        max_tokens=model["max_tokens"],
    )
    left_out = set(ignored)
    names = Names(
        tuple(entries),
        tuple(name for name in state.specs if name not in left_out),
        shared,
        constants,
        tuple(ignored),
        state.wrapper,
    )
    notes = [f"ignored by name: {', '.join(ignored)}"] if ignored else []
    if constants:
        notes.append(f"kept in {len(constants)} record(s), no weights: {', '.join(constants)}")
    if heads is None and "heads" not in state.facts:
        notes.append(f"the file does not tell the attention heads: {model['heads']} (width / 64)")
    return Conversion(names, {**model, **settings.fields}, (*notes, *settings.notes))


def _is_buffer(current: str) -> bool:
    return current.rpartition(".")[2] in _BUFFERS or current == _TOKEN_TYPES


def _check_tied(state: StateDict, name: str, twin: str) -> None:
    if state.shared.get(name) == twin:
        return
    left, right = state.specs[name], state.specs[twin]
    if left == right and same_bits(state.read(name), state.read(twin)):
        return
    raise TreeMismatchError(
        f"{state.label}: {name!r} is tied to {twin!r} in RoBERTa and must hold the same values, "
        f"found {left} and {right} that differ; convert/state_dicts.py keeps both"
    )


def _architecture(
    state: StateDict, leaves: Mapping[str, LeafSpec], unknown: list[str], heads: int | None
) -> dict[str, Any]:
    """Architecture arguments by shapes; checks that exactly its leaves are there."""

    def shape(leaf: str, axes: int) -> tuple[int, ...]:
        found = leaves.get(f"params/{leaf}")
        return found.shape if found and len(found.shape) == axes else (0,) * axes

    vocabulary, width = shape("embed_tokens/embedding", 2)
    layers = 1 + max(
        (int(k.split("/")[2]) for k in leaves if k.startswith("params/layers/")), default=-1
    )
    ffn = shape("layers/0/fc1/kernel", 2)[1]
    rows = shape("embed_positions/embedding", 2)[0]
    pre_norm = "params/layer_norm/scale" in leaves
    types = shape("embed_token_types/embedding", 2)[0]
    expected = expected_leaves(
        vocabulary, layers, width, ffn, rows, pre_norm=pre_norm, token_types=types
    )
    problems = [f"nothing for {n!r}" for n in expected if n not in leaves]
    problems += [
        f"{n!r} has shape {list(leaves[n].shape)}, expected {list(s)}"
        for n, s in expected.items()
        if n in leaves and leaves[n].shape != s
    ]
    problems += [f"{name!r} is unknown" for name in unknown]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise TreeMismatchError(
            f"{state.label} is no RoBERTa: {'; '.join(problems[:5])}{more}. "
            f"{_guess(state)}convert/state_dicts.py converts any model"
        )
    heads = heads or state.facts.get("heads") or max(1, width // 64)
    if width % heads:
        raise TreeMismatchError(
            f"{state.label}: width {width} does not divide by {heads} heads; say --heads"
        )
    return {
        "vocab_size": vocabulary,
        "layers": layers,
        "width": width,
        "ffn_width": ffn,
        "heads": heads,
        "max_tokens": rows - 2,
        **({"pre_norm": True} if pre_norm else {}),
        **({"token_types": types} if types else {}),
    }


def _guess(state: StateDict) -> str:
    names = " ".join(state.specs)
    for sign, guess in (
        ("layer1.0.conv1", "It looks like a ResNet: use convert/resnet50.py; "),
        ("encoder_attn", "It looks like an encoder-decoder Transformer: "),
        ("decoder.layers.", "It looks like a decoder-only Transformer: "),
        ("bert.encoder.layer", "It looks like BERT: "),
        ("in_proj_weight", "It has the fused attention weights of fairseq before 0.8: "),
    ):
        if sign in names:
            return guess
    return ""


def expected_leaves(
    vocabulary: int,
    layers: int,
    width: int,
    ffn_width: int,
    rows: int,
    *,
    pre_norm: bool = False,
    token_types: int = 0,
) -> dict[str, tuple[int, ...]]:
    """Every leaf and its shape; `rows` of the position table."""
    leaves: dict[str, tuple[int, ...]] = {
        "embed_tokens/embedding": (vocabulary, width),
        "embed_positions/embedding": (rows, width),
        "lm_head/bias": (vocabulary,),
        "lm_head/dense/kernel": (width, width),
        "lm_head/dense/bias": (width,),
    }
    if token_types:
        leaves["embed_token_types/embedding"] = (token_types, width)
    norms = ["layernorm_embedding", "lm_head/layer_norm", *(["layer_norm"] if pre_norm else [])]
    for i in range(layers):
        for p in "qkv":
            leaves[f"layers/{i}/self_attn/{p}_proj/kernel"] = (width, width)
            leaves[f"layers/{i}/self_attn/{p}_proj/bias"] = (width,)
        leaves[f"layers/{i}/self_attn/out_proj/kernel"] = (width, width)
        leaves[f"layers/{i}/self_attn/out_proj/bias"] = (width,)
        leaves[f"layers/{i}/fc1/kernel"] = (width, ffn_width)
        leaves[f"layers/{i}/fc1/bias"] = (ffn_width,)
        leaves[f"layers/{i}/fc2/kernel"] = (ffn_width, width)
        leaves[f"layers/{i}/fc2/bias"] = (width,)
        norms += [f"layers/{i}/self_attn_layer_norm", f"layers/{i}/final_layer_norm"]
    for norm in norms:
        leaves |= {f"{norm}/scale": (width,), f"{norm}/bias": (width,)}
    return {f"params/{name}": shape for name, shape in leaves.items()}


def names_for(specs: Mapping[str, LeafSpec], style: Style) -> Names:
    """Names for a checkpoint of any origin in the style asked for, tied weights included.

    Raises:
      TreeMismatchError: a leaf is not one of RoBERTa.
    """
    rules = FAIRSEQ if style == "fairseq" else HUGGING_FACE
    entries = []
    for leaf, spec in specs.items():
        match = to_theirs(rules, leaf)
        if match is None:
            raise TreeMismatchError(f"leaf {leaf!r} is none of RoBERTa; use convert/state_dicts.py")
        shape = spec.shape[::-1] if match.layout == "linear" else spec.shape
        keys = tuple(leaf.split("/"))
        entries.append(Entry(match.name, keys, match.layout, shape, spec.dtype.name))
    rank = {id(rule): i for i, rule in enumerate(rules)}

    def position(entry: Entry) -> tuple[int, int]:
        layer = int(entry.keys[2]) if entry.keys[1] == "layers" else -1
        if entry.keys[1] == "lm_head":
            layer = math.inf  # type: ignore[assignment]
        rule = next(r for r in rules if to_ours((r,), entry.name))
        return layer, rank[id(rule)]

    entries.sort(key=position)
    there = {entry.name for entry in entries}
    shared = {name: twin for name, twin in _TIED.items() if twin in there}
    constants = {}
    if style == "huggingface" and _TOKEN_TYPES not in there:
        spec = specs[_EMBEDDING]
        width = spec.shape[1]
        zeros = Constant((1, width), spec.dtype.name, "00" * width * spec.dtype.itemsize)
        constants[_TOKEN_TYPES] = zeros
    elif style == "fairseq":
        version = np.asarray([3], np.float32)
        constants[f"{_F}.version"] = Constant((1,), "float32", version.tobytes().hex())
    order = (*constants, *(entry.name for entry in entries), *shared)
    wrapper = ("model",) if style == "fairseq" else ()
    return Names(tuple(entries), order, shared, constants, wrapper=wrapper)

"""What a RoBERTa file's configuration says that its tensors do not: the network, the evaluation."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lawa_jax.errors import TreeMismatchError
from lawa_jax.models.activations import ACTIVATIONS

# fairseq's and Hugging Face's names -> ours.
_ACTIVATIONS = {
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python": "gelu",
    "relu2": "relu_squared",
    "swish": "silu",
    **{name: name for name in ACTIVATIONS if name != "gelu_tanh"},
}
# Settings with another meaning for the network, and the value that this RoBERTa has.
_FIXED = {
    "layernorm_embedding": True,
    "no_scale_embedding": True,
    "encoder_learned_pos": True,
    "position_embedding_type": "absolute",
    "pad_token_id": 1,
}
# Of the evaluation's masks and blocks.
_EVALUATION = {
    "sample_break_mode": "complete",
    "leave_unmasked_prob": 0.1,
    "random_token_prob": 0.1,
    "freq_weighted_replacement": False,
    "mask_whole_words": False,
    "mask_multiple_length": 1,
    "mask_stdev": 0.0,
    "shorten_method": "none",
}
_HUGGING_FACE_EPSILON = 1e-12  # RobertaConfig's own default; roberta-base says 1e-5
_DEFAULTS = {
    "activation": "gelu",
    "head_activation": "gelu",
    "layer_norm_epsilon": 1e-5,
    "eval_seed": 1,
    "mask_prob": 0.15,
}


class Settings(NamedTuple):
    """Fields of the run's configuration that differ from their defaults, and what to tell."""

    fields: dict[str, Any]
    notes: tuple[str, ...]


def read_settings(
    settings: Mapping[str, Any], label: str, *, hugging_face: bool, max_tokens: int
) -> Settings:
    """Fields for the run's configuration.

    Args:
      settings: the fact of this name of a file, see `facts.collect`.
      label: the file, for messages.
      hugging_face: whose configuration it is.
      max_tokens: positions that the model has.

    Raises:
      TreeMismatchError: the network is one that `lawa_jax.models.roberta` cannot compute.
    """
    for name, value in _FIXED.items():
        if settings.get(name, value) != value:
            raise TreeMismatchError(
                f"{label}: {name} is {settings[name]!r} there, and lawa_jax.models.roberta "
                f"computes only {value!r}; convert/state_dicts.py averages any model"
            )
    named = settings.get("hidden_act" if hugging_face else "activation_fn", "gelu")
    activation = _ACTIVATIONS.get(named)
    if activation is None:
        raise TreeMismatchError(
            f"{label}: activation {named!r} is unknown; known: {', '.join(sorted(_ACTIVATIONS))}. "
            "convert/state_dicts.py averages any model"
        )
    epsilon = 1e-5
    if hugging_face and settings:
        epsilon = float(settings.get("layer_norm_eps", _HUGGING_FACE_EPSILON))
    fields = {
        "activation": activation,
        "head_activation": "gelu" if hugging_face else activation,
        "layer_norm_epsilon": epsilon,
        "eval_seed": int(settings.get("seed", 1)),
        "mask_prob": float(settings.get("mask_prob", 0.15)),
    }
    fields = {name: value for name, value in fields.items() if value != _DEFAULTS[name]}
    length = settings.get("tokens_per_sample")
    if isinstance(length, int) and length != max_tokens:
        fields["tokens_per_sample"] = length
    notes = [f"from the file's configuration: {n} {v}" for n, v in fields.items()]
    unused = {n: settings[n] for n, v in _EVALUATION.items() if settings.get(n, v) != v}
    if unused:
        told = ", ".join(f"{name} {value}" for name, value in unused.items())
        notes.append(
            f"not used in --evaluate, so that its figures differ from the trainer's: {told}"
        )
    return Settings(fields, tuple(notes))

"""RoBERTa and its training in PyTorch, written for the parity tests from the paper and fairseq.

A state dict is a plain dict of tensors under fairseq's names; attention is spelled out.
"""

import math

import torch
import torch.nn.functional as F

ENCODER = "encoder.sentence_encoder."
HEAD = "encoder.lm_head."


def forward(state, tokens, heads):
    """Logits [batch, length, vocab]."""

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    padding = tokens == 1
    positions = torch.zeros_like(tokens)
    for row in range(tokens.shape[0]):
        seen = 1
        for place in range(tokens.shape[1]):
            seen += not padding[row, place]
            positions[row, place] = 1 if padding[row, place] else seen
    x = state[f"{ENCODER}embed_tokens.weight"][tokens]
    x = x + state[f"{ENCODER}embed_positions.weight"][positions]
    x = norm(x, f"{ENCODER}layernorm_embedding").masked_fill(padding[..., None], 0.0)
    batch, length, width = x.shape
    layer = 0
    while f"{ENCODER}layers.{layer}.fc1.weight" in state:
        name = f"{ENCODER}layers.{layer}"
        q, k, v = (
            linear(x, f"{name}.self_attn.{part}_proj")
            .view(batch, length, heads, width // heads)
            .transpose(1, 2)
            for part in "qkv"
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(width // heads)
        scores = scores.masked_fill(padding[:, None, None, :], -1e30)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
        x = norm(x + linear(mixed, f"{name}.self_attn.out_proj"), f"{name}.self_attn_layer_norm")
        hidden = linear(x, f"{name}.fc1")
        hidden = 0.5 * hidden * (1.0 + torch.erf(hidden / math.sqrt(2.0)))
        x = norm(x + linear(hidden, f"{name}.fc2"), f"{name}.final_layer_norm")
        layer += 1
    x = linear(x, f"{HEAD}dense")
    x = 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))
    x = norm(x, f"{HEAD}layer_norm")
    return x @ state[f"{ENCODER}embed_tokens.weight"].T + state[f"{HEAD}bias"]


def loss_sum(state, tokens, targets, heads):
    """Sum of the cross-entropy in nats over all places whose dense target is not padding."""
    logits = forward(state, tokens, heads)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=1)


class Adam:
    """fairseq's Adam, one tensor after the other, in place."""

    def __init__(self, state, betas, eps, weight_decay):
        self.betas, self.eps, self.weight_decay, self.steps = betas, eps, weight_decay, 0
        self.moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in state.items()}

    def step(self, state, grads, lr):
        self.steps += 1
        b1, b2 = self.betas
        size = lr * math.sqrt(1 - b2**self.steps) / (1 - b1**self.steps)
        with torch.no_grad():
            for name, parameter in state.items():
                mean, square = self.moments[name]
                mean.mul_(b1).add_(grads[name], alpha=1 - b1)
                square.mul_(b2).addcmul_(grads[name], grads[name], value=1 - b2)
                parameter.sub_(parameter, alpha=self.weight_decay * lr)
                parameter.addcdiv_(mean, square.sqrt().add_(self.eps), value=-size)

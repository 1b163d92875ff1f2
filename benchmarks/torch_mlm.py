"""A masked language model and its training step in PyTorch, to measure against."""

from typing import Any

import numpy as np

from lawa_jax.data.dictionary import PAD
from lawa_jax.trajectory.formats.torch_files import import_torch


def torch_mlm(sizes: dict[str, int], *, vocab_size: int, half: bool = False) -> tuple[Any, Any]:
    """The model and ``step(batch)`` with AdamW, which returns nothing; on CUDA where there is."""
    torch = import_torch()
    nn, functional = torch.nn, torch.nn.functional
    device = "cuda" if torch.cuda.is_available() else "cpu"
    width, heads = sizes["width"], sizes["heads"]

    class Layer(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.fc1 = nn.Linear(width, sizes["ffn_width"])
            self.fc2 = nn.Linear(sizes["ffn_width"], width)
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.drop = nn.Dropout(0.1)

        def forward(self, x: Any, mask: Any) -> Any:
            q, k, v = (
                part.unflatten(-1, (heads, -1)).transpose(1, 2)
                for part in self.qkv(x).chunk(3, dim=-1)
            )
            rate = 0.1 if self.training else 0.0
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
            x = self.norm1(x + self.drop(self.out(y.transpose(1, 2).flatten(2))))
            return self.norm2(x + self.drop(self.fc2(functional.gelu(self.fc1(x)))))

    class Model(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(vocab_size, width, padding_idx=PAD)
            self.positions = nn.Embedding(sizes["max_tokens"] + 2, width, padding_idx=PAD)
            self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(0.1)
            self.layers = nn.ModuleList(Layer() for _ in range(sizes["layers"]))
            self.dense, self.head_norm = nn.Linear(width, width), nn.LayerNorm(width)
            self.bias = nn.Parameter(torch.zeros(vocab_size))

        def forward(self, tokens: Any, places: Any) -> Any:
            real = tokens != PAD
            positions = torch.cumsum(real, 1) * real + PAD
            x = self.drop(self.norm(self.tokens(tokens) + self.positions(positions)))
            for layer in self.layers:
                x = layer(x, real[:, None, None, :])
            x = torch.gather(x, 1, places[:, :, None].expand(-1, -1, width))
            x = self.head_norm(functional.gelu(self.dense(x)))
            return functional.linear(x, self.tokens.weight, self.bias)

    model = Model().to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6)

    def step(batch: dict[str, np.ndarray]) -> None:
        tokens, places, targets = (
            torch.from_numpy(batch[name].astype(np.int64)).to(device)
            for name in ("tokens", "masked_positions", "targets")
        )
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            logits = model(tokens, places)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return model, step

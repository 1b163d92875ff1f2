"""A tiny RoBERTa on the documentation inside every CPython: LAWA on text in a few minutes.

Source: the same code path as RoBERTa-base; the text is `pydoc_data.topics`, about 100 thousand
    tokens of a byte-level BPE trained on it. The learning rate stays
    constant after warm-up, as it nearly does in the paper (its decay ends at 85 % of the peak).
Command: python train/roberta_wikitext.py --config configs/roberta_tiny.py --lawa_k 10
Hardware: 2 CPU cores, four minutes.
Expected: see the README.
"""

from lawa_jax.training.text_config import TextConfig

config = TextConfig(
    dataset="embedded",
    data_dir="data/python-topics",
    embedded_vocabulary=1000,
    epochs=60,
    batch_size=32,
    layers=2,
    width=64,
    ffn_width=256,
    heads=2,
    max_tokens=128,
    learning_rate=2e-3,
    schedule="constant",
    warmup_updates=100,
    lengths=2,
    loader_threads=2,
)

"""RoBERTa-base on WikiText-103, as the LAWA paper trained it.

Source: Kaddour 2022, arXiv 2209.14981, section 4 and its published code (fairseq): 200 epochs of
    136 updates of 2,048 blocks of 512 tokens; Adam (0.9, 0.98), eps 1e-6, weight decay 0.01, peak
    learning rate 5e-4, 10,000 updates of warm-up, linear decay with a horizon of 125,000,
    dropout 0.1.
Command: python train/roberta_wikitext.py --config configs/roberta_wikitext103.py --lawa_k 10
    (blocks of one accumulated part: 2,048 / 32 = 64, over all devices; the paper had 4 GPUs.)
Hardware: the paper's 4 GPUs took about 10 minutes an epoch: 133 GPU-hours.
Expected (the paper's statement, not yet reproduced by this project): the best validation loss is
    reached about 45 epochs earlier with LAWA.
"""

from lawa_jax.training.text_config import TextConfig

config = TextConfig(
    dataset="data_bin",
    data_dir="data/wikitext-103",
    epochs=200,
    batch_size=2048,
    accumulate=32,
    learning_rate=5e-4,
    warmup_updates=10_000,
    total_updates=125_000,
    compute_dtype="bfloat16",
)

"""A small ResNet on scikit-learn's digits: LAWA at work on real images in half a minute.

Source: the same code path as ResNet-50, with a CIFAR stem; recipe of the LAWA paper
    (arXiv 2209.14981) scaled down: SGD with momentum, cosine schedule, one checkpoint an epoch.
Command: python train/resnet_imagenet.py --config configs/resnet_digits.py --lawa_k 5
Hardware: 2 CPU cores, under a minute.
Expected: see the README's table of three seeds.
"""

from lawa_jax.training.config import ImageConfig

config = ImageConfig(
    dataset="digits",
    arch="resnet_digits",
    epochs=30,
    batch_size=64,
    base_batch_size=64,
    learning_rate=0.1,
    weight_decay=1e-4,
    bn_batches=0,
    loader_threads=0,
)

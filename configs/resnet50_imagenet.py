"""ResNet-50 on ImageNet, as the LAWA paper trained it.

Source: Kaddour 2022, arXiv 2209.14981, section 4 and its published code: 90 epochs, batch 256, SGD
    with momentum 0.9, weight decay 1e-4 on every parameter, learning rate 0.1, cosine stepped per
    epoch, no warm-up, RandomResizedCrop(224) and flip; evaluation Resize(256), CenterCrop(224).
Command: python train/resnet_imagenet.py --config configs/resnet50_imagenet.py --lawa_k 5
Hardware: the paper's 4 GPUs took about 26 minutes an epoch: 39 hours, 156 GPU-hours.
Expected (the paper's figures, not yet reproduced by this project): top-1 of about 76 % at the end;
    with LAWA about 66 % some 40 epochs earlier than without.
"""

from lawa_jax.training.config import ImageConfig

config = ImageConfig(
    dataset="imagenet",
    arch="resnet50",
    image_size=224,
    epochs=90,
    batch_size=256,
    base_batch_size=256,
    learning_rate=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="cosine",
    bn="recalibrate",
    bn_batches=0,
)

"""A ResNet in plain PyTorch, written from the papers alone: the other side of the parity tests."""

import torch
from torch import nn


def conv(inputs, outputs, size, stride=1):
    return nn.Conv2d(inputs, outputs, size, stride, padding=(size - 1) // 2, bias=False)


def shortcut(inputs, outputs, stride):
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class Basic(nn.Module):
    growth = 1

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + identity)


class Bottle(nn.Module):
    growth = 4

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(inputs, 4 * width, stride)

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + identity)


class TorchResNet(nn.Module):
    def __init__(self, sizes, widths, bottleneck, cifar=False, channels=3, classes=1000):
        super().__init__()
        block = Bottle if bottleneck else Basic
        now = widths[0]
        self.conv1 = conv(channels, now, 3) if cifar else conv(channels, now, 7, 2)
        self.bn1 = nn.BatchNorm2d(now)
        self.maxpool = nn.Identity() if cifar else nn.MaxPool2d(3, 2, padding=1)
        self.names = []
        for number, (size, width) in enumerate(zip(sizes, widths, strict=True), 1):
            blocks = []
            for index in range(size):
                blocks.append(block(now, width, 2 if number > 1 and index == 0 else 1))
                now = width * block.growth
            self.names.append(f"layer{number}")
            setattr(self, self.names[-1], nn.Sequential(*blocks))
        self.fc = nn.Linear(now, classes)

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for name in self.names:
            x = getattr(self, name)(x)
        return self.fc(x.mean(dim=(2, 3)))


def to_jax(state):
    """A state dict as a model dict of numpy arrays: kernels HWIO, torchvision's names split."""
    model = {"params": {}, "batch_stats": {}}
    for name, tensor in state.items():
        name = name.replace("downsample.0", "downsample.conv").replace(
            "downsample.1", "downsample.bn"
        )
        *path, last = name.split(".")
        if last == "num_batches_tracked":
            continue
        array = tensor.detach().numpy().copy()
        if last == "weight":
            last = "scale" if array.ndim == 1 else "kernel"
            array = {
                1: array,
                2: array.T,
                4: array.transpose(2, 3, 1, 0) if array.ndim == 4 else 0,
            }[array.ndim]
        last = {"running_mean": "mean", "running_var": "var"}.get(last, last)
        node = model["batch_stats" if last in ("mean", "var") else "params"]
        for key in path:
            node = node.setdefault(key, {})
        node[last] = array.copy()
    return model

"""Checkpoints of a torchvision ResNet (18 to 152) into a run, and back.

in:   python convert/resnet50.py CHECKPOINTS RUN
back: python convert/resnet50.py --export RUN@90 model.pt
"""

import sys
from dataclasses import dataclass
from typing import Literal

from lawa_jax import script

with script.importing():
    from lawa_jax.interop import torchvision_resnet
    from lawa_jax.interop.convert_command import ConvertArguments, execute, parse
    from lawa_jax.interop.export import find_names_of


@dataclass(frozen=True)
class ResNetArguments(ConvertArguments):
    """The common arguments, and the architecture."""

    arch: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "auto"] = "resnet50"
    """What the files must hold; auto: whichever of these they hold."""


def main() -> None:
    """Wire the command line to the converter."""
    line = parse(ResNetArguments, __doc__ or "", sys.argv[1:])
    execute(
        line,
        lambda state: torchvision_resnet.convert(state, line.arch),
        None if find_names_of(line.source) else torchvision_resnet.names_for,
    )


if __name__ == "__main__":
    script.run(main)

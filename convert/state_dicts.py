"""Any PyTorch or safetensors trajectory into a run, and any run back; no model code needed.

in:      python convert/state_dicts.py CHECKPOINTS RUN
back:    python convert/state_dicts.py --export RUN@90 model.pt
average: lawa average RUN -k 5 -o OUT, then --export OUT model.safetensors --names RUN
"""

import sys

from lawa_jax import script

with script.importing():
    from lawa_jax.interop import state_dicts
    from lawa_jax.interop.convert_command import ConvertArguments, execute, parse


def main() -> None:
    """Wire the command line to the converter."""
    line = parse(ConvertArguments, __doc__ or "", sys.argv[1:])
    execute(line, state_dicts.convert, None)


if __name__ == "__main__":
    script.run(main)

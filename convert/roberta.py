"""RoBERTa checkpoints (fairseq old and new, Hugging Face) into a run, and back.

in:   python convert/roberta.py CHECKPOINTS RUN
back: python convert/roberta.py --export RUN@190 model.pt
      python convert/roberta.py --export RUN@190 pytorch_model.bin --style huggingface

Arrays keep their dtype: half-precision files stay so in the run and go back bit for bit; averaging
accumulates in float64 and evaluation computes in float32.
"""

import sys
from dataclasses import dataclass
from typing import Literal

from lawa_jax import script

with script.importing():
    from lawa_jax.interop import fairseq_roberta
    from lawa_jax.interop.convert_command import ConvertArguments, execute, parse
    from lawa_jax.interop.export import find_names_of


@dataclass(frozen=True)
class RobertaArguments(ConvertArguments):
    """The common arguments, and what RoBERTa's tensors do not tell."""

    heads: int = 0
    """Attention heads; 0: what the files say, else width / 64."""
    style: Literal["original", "fairseq", "huggingface"] = "original"
    """With --export: names as in the files that were converted, or of either library."""


def main() -> None:
    """Wire the command line to the converter."""
    line = parse(RobertaArguments, __doc__ or "", sys.argv[1:])
    style = line.style
    if style == "original":
        known = line.names or find_names_of(line.source)
        names_for = None if known else lambda specs: fairseq_roberta.names_for(specs, "fairseq")
    else:
        chosen: fairseq_roberta.Style = style
        names_for = lambda specs: fairseq_roberta.names_for(specs, chosen)  # noqa: E731
    execute(line, lambda state: fairseq_roberta.convert(state, line.heads or None), names_for)


if __name__ == "__main__":
    script.run(main)

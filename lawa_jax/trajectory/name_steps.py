"""What a file's name says of its step: a table of the words that trainers use.

A number in a name is the step only where a word says so. Losses, accuracies, versions, dates and
hashes are numbers as well.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lawa_jax.trajectory.formats.huggingface import SUFFIXES

Kind = Literal["checkpoint", "copy", "average", "ema", "trainer", "shard", "unfinished"]

_EPOCH = frozenset({"epoch", "epochs", "ep", "e"})
_STEP = frozenset(
    {"step", "steps", "iter", "iters", "iteration", "iterations", "it", "update", "updates"}
)
# "checkpoint12" is a step for sure; "model_3" most often is, unless its content says otherwise.
_CHECKPOINT = frozenset({"checkpoint", "checkpoints", "ckpt", "chkpt", "snapshot"})
_MODEL = frozenset(
    {"model", "weights", "weight", "save", "saved", "net", "params", "state", "dict"}
)
_METRICS = frozenset(
    {"loss", "acc", "accuracy", "top", "bleu", "rouge", "map", "ap", "ar", "miou", "iou", "dice"}
    | {"f", "auc", "wer", "cer", "per", "ppl", "perplexity", "psnr", "ssim", "fid", "score", "eer"}
    | {"metric", "prec", "precision", "recall", "mae", "mse", "rmse", "err", "error", "lr", "seed"}
    | {"reward", "return", "nll", "bpc", "bpd", "elbo"}
)
_SPLITS = frozenset({"val", "valid", "validation", "train", "test", "dev", "eval", "avg", "mean"})
_VERSION = frozenset({"v", "ver", "version"})
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("best", "last", "latest", "final", "newest", "current", "copy"), "copy"),
    **dict.fromkeys(("avg", "average", "averaged", "averages", "swa", "swag", "lawa"), "average"),
    **dict.fromkeys(("polyak", "soup", "ensemble"), "average"),
    **dict.fromkeys(("optim", "optimizer", "optimizers", "opt", "scheduler", "scaler"), "trainer"),
    **dict.fromkeys(("rng", "sampler", "args", "optstates"), "trainer"),
    **dict.fromkeys(("tmp", "temp", "incomplete", "partial"), "unfinished"),
    "ema": "ema",
}
# Words that do not tell one series of files from another.
_NEUTRAL = (
    _EPOCH | _STEP | _CHECKPOINT | _MODEL | _VERSION | {"global", "pytorch", "after", "at", "of"}
) | {word for word, kind in _KINDS.items() if kind == "copy"}

_SHARD = re.compile(r"-\d+-of-\d+$")
_DATE = re.compile(
    r"(?<!\d)(?:19|20)\d\d(?P<by>[-_.]?)(?:0[1-9]|1[0-2])(?P=by)(?:0[1-9]|[12]\d|3[01])"
    r"(?:[-_T. ]?\d{2}[-_:.]?\d{2}(?:[-_:.]?\d{2})?)?(?!\d)"
)
_TOKEN = re.compile(
    r"(?P<hash>(?<![A-Za-z0-9])(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{7,}(?![A-Za-z0-9]))"
    r"|(?P<decimal>\d+(?:\.\d+)+(?:[eE][-+]?\d+)?|\d+[eE][-+]\d+)"
    r"|(?P<integer>\d+)"
    r"|(?P<word>[A-Z]+(?![a-z])|[A-Z]?[a-z]+)"
)
# Of so many digits an unlabelled number behind a model's name is a hash: resnet34-43635321.pth.
_HASH_DIGITS = 8


@dataclass(frozen=True)
class NameReading:
    """What a name says.

    Attributes:
      epoch: the number that a word calls the epoch.
      step: the number that a word calls the step (iteration, update).
      number: an unlabelled number that stands where trainers put an epoch or a step.
      sure: whether `epoch`, `step` or `number` surely is one; content decides otherwise.
      kind: "checkpoint"; "copy" (best, last, ``-v1``); "average", "ema"; "trainer" (an optimizer's
        file); "shard"; "unfinished".
      mid_epoch: ``checkpoint_3_1000``: a save in the middle of an epoch.
      chosen_by_metric: Lightning's and timm's names, which keep the best few: gaps are no loss.
      role: the words left over; files of one series share them.
      pattern: a glob of the series, such as ``G_*.pth``.
    """

    epoch: int | None = None
    step: int | None = None
    number: int | None = None
    sure: bool = False
    kind: Kind = "checkpoint"
    mid_epoch: bool = False
    chosen_by_metric: bool = False
    role: str = ""
    pattern: str = "*"

    @property
    def numbered(self) -> bool:
        """Whether there is any number that may be a step."""
        return not self.epoch is self.step is self.number is None


def step_in_name(name: str) -> NameReading:
    """Read a file or folder name.

    Example: ``checkpoint12.pt`` is number 12 for sure, ``epoch=3-step=900.ckpt`` epoch 3 and step
    900, ``best-val_loss=0.0785.ckpt`` a copy without a number, ``avg_10.pt`` an average,
    ``model_0.31.pth`` nothing.
    """
    stem = name
    while Path(stem).suffix in SUFFIXES:
        stem = Path(stem).stem
    pattern = re.sub(r"\*[-_.]*\*", "*", re.sub(r"\d+(?:\.\d+)*", "*", stem)) + name[len(stem) :]
    if _SHARD.search(stem):
        return NameReading(kind="shard", pattern=pattern)
    reading = replace(_Reader(stem).read(), pattern=pattern)
    # timm keeps its best few as checkpoint-12.pth.tar; Lightning writes key=value.
    by_metric = "=" in stem or bool(re.fullmatch(r"checkpoint-\d+\.pth\.tar", name))
    return replace(reading, chosen_by_metric=by_metric)


class _Reader:
    """One pass over the words and numbers of a stem."""

    def __init__(self, stem: str) -> None:
        self._dated = _DATE.sub(lambda found: _undated(stem, found), stem)
        self._tokens = list(_TOKEN.finditer(self._dated))
        self._stem = stem
        self._labels: dict[str, int] = {}
        self._numbers: list[tuple[int, bool]] = []
        self._kind: Kind = "checkpoint"
        self._rest: list[str] = []

    def read(self) -> NameReading:
        metric = version = False
        for index, token in enumerate(self._tokens):
            if token.lastgroup == "word":
                word = token.group().lower()
                metric = self._is_metric(index, word)
                version = word in _VERSION
                self._word(index, word, metric)
            elif token.lastgroup == "integer" and not metric:
                if version and self._glued(index):
                    self._kind = "copy" if index == len(self._tokens) - 1 else self._kind
                else:
                    self._integer(index, token.group())
            elif token.lastgroup != "hash" and not metric:
                self._rest.append(token.group())
        return self._result()

    def _word(self, index: int, word: str, metric: bool) -> None:
        kind = _KINDS.get(word)
        if word == "avg" and index + 1 < len(self._tokens):
            following = self._tokens[index + 1].group().lower()
            kind = None if following in _METRICS else kind  # val_avg_loss
        if kind and self._kind in ("checkpoint", "copy"):
            self._kind = kind
        if not metric and word not in _NEUTRAL and word not in _SPLITS and kind != "average":
            self._rest.append(word)

    def _is_metric(self, index: int, word: str) -> bool:
        """A measured value follows: a metric's name, or any key but epoch and step before a =."""
        end = self._tokens[index].end()
        if word in _EPOCH | _STEP:
            return False
        return word in _METRICS or self._dated[end : end + 1] == "="

    def _glued(self, index: int) -> bool:
        return index > 0 and self._tokens[index - 1].end() == self._tokens[index].start()

    def _integer(self, index: int, digits: str) -> None:
        before = self._tokens[index - 1] if index else None
        word = before.group().lower() if before is not None and before.lastgroup == "word" else ""
        value = int(digits)
        following = self._tokens[index + 1].group().lower() if index + 1 < len(self._tokens) else ""
        labels_next = index + 2 < len(self._tokens) and self._tokens[index + 2].group().isdigit()
        label = word
        if word not in _EPOCH | _STEP and following in _EPOCH | _STEP and not labels_next:
            label = following  # "10_epochs"
        if label in _EPOCH and (label != "e" or self._glued(index)):
            self._labels.setdefault("epoch", value)
        elif label in _STEP:
            self._labels.setdefault("step", value)
        elif word in _CHECKPOINT | _MODEL or (before is None and len(self._tokens) == 1):
            sure = word in _CHECKPOINT or before is None or len(digits) >= 4
            self._numbers.append((value, sure))
        elif before is not None and before.lastgroup == "integer" and self._numbers:
            self._numbers.append((value, self._numbers[-1][1]))
        elif (word and self._glued(index)) or len(digits) >= _HASH_DIGITS:
            self._rest.append(digits)  # resnet50, resnet34-43635321
        elif index in (0, len(self._tokens) - 1) or self._kind != "checkpoint":
            self._numbers.append((value, False))
        else:
            self._rest.append(digits)

    def _result(self) -> NameReading:
        reading = NameReading(kind=self._kind, role=" ".join(self._rest))
        epoch, step = self._labels.get("epoch"), self._labels.get("step")
        if self._labels:
            return replace(reading, epoch=epoch, step=step, sure=True)
        if not self._numbers:
            return reading
        two = re.fullmatch(r"(checkpoint|recovery)[-_](\d+)[-_](\d+)", self._stem)
        if two:
            # fairseq counts updates, timm batches of the epoch.
            step = int(two[3]) if two[1] == "checkpoint" else None
            return replace(
                reading, epoch=int(two[2]), step=step, sure=True, mid_epoch=True, role=""
            )
        number, sure = self._numbers[-1]
        sure = sure and len(self._numbers) == 1 and self._kind == "checkpoint"
        return replace(reading, number=number, sure=sure)


def _undated(stem: str, found: re.Match[str]) -> str:
    """Takes a date out of a name, unless a word says that it is a step."""
    before = re.search(r"([A-Za-z]+)[-_=.]?$", stem[: found.start()])
    if before and before[1].lower() in _EPOCH | _STEP:
        return found.group()
    return "-"

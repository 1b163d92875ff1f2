"""Train RoBERTa on masked words, save every epoch, average the latest k checkpoints.

RoBERTa-base on WikiText-103: python train/roberta_wikitext.py --lawa_k 10

A few minutes on a CPU: python train/roberta_wikitext.py --config configs/roberta_tiny.py

Go on after a stop: python train/roberta_wikitext.py --config ... --resume

What it takes on a TPU slice: python train/roberta_wikitext.py --plan v5e:4x4 --fsdp 4

Averages of a past run: python train/roberta_wikitext.py --evaluate RUN --lawa_k 10 --end 80 90
--splits train val test
"""

import dataclasses
import os
import sys
from collections.abc import Sequence

import numpy as np
from etils import epath

from lawa_jax import script
from lawa_jax.data.masking import max_targets
from lawa_jax.data.text import TextData, dummy_text, load_data_bin, prepare_embedded
from lawa_jax.distributed import ALONE
from lawa_jax.errors import ConfigError
from lawa_jax.planning import plan, topology
from lawa_jax.training import sessions
from lawa_jax.training.command_line import parse
from lawa_jax.training.mesh import Placement
from lawa_jax.training.task import Task
from lawa_jax.training.text_config import TextConfig
from lawa_jax.training.text_task import SPLITS, padding_waste, roberta_network, text_task

# Of RoBERTa's published dictionary.
FAIRSEQ_SYMBOLS = 50_265


def load(config: TextConfig, splits: Sequence[str]) -> TextData:
    """The splits (train, val, test) of the text that a configuration names."""
    if config.dataset == "dummy":
        return dummy_text(config.dummy_blocks, max_tokens=config.max_tokens)
    if config.dataset == "embedded":
        prepare_embedded(config.data_dir, vocab_size=config.embedded_vocabulary)
    for split in splits:
        if split not in SPLITS:
            raise ConfigError(f"--splits: expected {', '.join(SPLITS)}, found {split!r}")
    return load_data_bin(
        config.data_dir,
        splits=[SPLITS[split] for split in splits],
        tokens_per_sample=config.max_tokens,
    )


def show_plan(task: Task, slice_: topology.Slice, config: TextConfig) -> None:
    """Print what every step takes, for blocks of full length."""
    example = {
        "tokens": np.zeros(config.max_tokens, np.int32),
        "masked_positions": np.zeros(max_targets(config.max_tokens), np.int32),
        "targets": np.zeros(max_targets(config.max_tokens), np.int32),
    }
    rows = config.eval_batch_size or config.batch_size // config.accumulate
    print(f"batch {config.batch_size} on {len(slice_.devices)} x {slice_.name}, fsdp {config.fsdp}")
    for step in plan.plan_steps(
        task,
        slice_,
        train=plan.batch_shapes(example, config.batch_size),
        evaluate=plan.batch_shapes(example, rows),
    ):
        size = config.batch_size if step.name == "train" else rows
        print(plan.describe_step(step, slice_, size), flush=True)


def main() -> None:
    """Wire the command line to data, task and session."""
    arguments = parse(TextConfig, "roberta_wikitext", __doc__ or "", sys.argv[1:])
    config, actions = arguments.run, arguments.actions
    if actions.dummy:
        config = dataclasses.replace(config, dataset="dummy")
    if actions.deterministic:
        # Read when the first device is used, which is below.
        os.environ["XLA_FLAGS"] = (
            os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
        )
    group = ALONE if actions.plan is not None else actions.join()
    slice_ = None if actions.plan is None else topology.describe(actions.plan)
    if slice_ is not None:
        # Blocks of full length; the data need not be there.
        data = dummy_text(
            config.batch_size,
            max_tokens=config.max_tokens,
            vocab_size=config.vocab_size or FAIRSEQ_SYMBOLS,
        )
    else:
        data = load(config, ("train", "val") if actions.evaluate is None else actions.splits)
    symbols = len(data.dictionary)
    if config.vocab_size not in (0, symbols):
        raise ConfigError(
            f"vocab_size: the model has {config.vocab_size} symbols, the dictionary in "
            f"{config.data_dir} {symbols}; give the --data_dir the model was trained on"
        )
    config = dataclasses.replace(config, vocab_size=symbols)
    task = text_task(
        data,
        roberta_network(
            config.compute_dtype,
            vocab_size=symbols,
            layers=config.layers,
            width=config.width,
            ffn_width=config.ffn_width,
            heads=config.heads,
            max_tokens=config.max_tokens,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            remat=config.remat,
            scan=config.scan,
        ),
        place=Placement(fsdp=config.fsdp)
        if slice_ is None
        else plan.placement(slice_, fsdp=config.fsdp),
        seed=config.seed,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        warmup_updates=config.warmup_updates,
        total_updates=config.total_updates,
        adam_b2=config.adam_b2,
        adam_eps=config.adam_eps,
        weight_decay=config.weight_decay,
        accumulate=config.accumulate,
        lengths=config.lengths,
        masker=config.masker,
        eval_batch_size=config.eval_batch_size,
        threads=config.loader_threads,
    )
    if slice_ is not None:
        show_plan(task, slice_, config)
        return
    if actions.evaluate is not None:
        rows = sessions.evaluate_run(
            task,
            epath.Path(actions.evaluate),
            k=config.lawa_k,
            ends=actions.end,
            bn="average",
            splits=actions.splits,
            as_json=actions.json,
        )
        if group.index == 0:
            print(rows)
        return
    waste = padding_waste(data, batch_size=config.batch_size, lengths=config.lengths)
    say = print if group.index == 0 else lambda *args, **kw: None
    say(
        f"{len(data.splits['train'].usable)} blocks, {task.samples_per_epoch // config.batch_size} "
        f"updates an epoch, {waste:.1%} of the positions are padding",
        file=sys.stderr,
    )
    sessions.train_run(
        task,
        config,
        bn="average",
        resume=actions.resume,
        init_from=actions.init_from,
        title=f"RoBERTa ({config.layers} layers of {config.width}) on {config.dataset}, "
        f"seed {config.seed}",
    )


if __name__ == "__main__":
    script.run(main)

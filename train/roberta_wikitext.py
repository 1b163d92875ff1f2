"""Train RoBERTa on masked words, save every epoch, average the latest k checkpoints.

RoBERTa-base on WikiText-103: python train/roberta_wikitext.py --lawa_k 10

A few minutes on a CPU: python train/roberta_wikitext.py --config configs/roberta_tiny.py

Go on after a stop: python train/roberta_wikitext.py --config ... --resume

What it takes on a TPU slice: python train/roberta_wikitext.py --plan v5e:4x4 --fsdp 4

Averages of a past run: python train/roberta_wikitext.py --evaluate RUN --lawa_k 10 --end 80 90
--splits train val test
"""

import dataclasses
import sys

from lawa_jax import script

with script.importing():
    from etils import epath

    from lawa_jax.planning.scripts import in_child, print_text_plan
    from lawa_jax.training import sessions
    from lawa_jax.training.command_line import parse
    from lawa_jax.training.mesh import Placement
    from lawa_jax.training.runtime import prepare
    from lawa_jax.training.text_config import TextConfig
    from lawa_jax.training.text_task import load_text, padding_waste, text_task


def main() -> None:
    """Wire the command line to data, task and session."""
    arguments = parse(TextConfig, "roberta_wikitext", __doc__ or "", sys.argv[1:])
    config, actions = arguments.run, arguments.actions
    if actions.dummy:
        config = dataclasses.replace(config, dataset="dummy")
    prepare(deterministic=actions.deterministic, compile_cache=actions.compile_cache)
    if actions.plan is not None:
        in_child(print_text_plan, config, actions.plan)
        return
    group = actions.join(config)
    data = load_text(config, ("train", "val") if actions.evaluate is None else actions.splits)
    config = dataclasses.replace(config, vocab_size=config.vocab_size or len(data.dictionary))
    task = text_task(config, data, Placement(fsdp=config.fsdp))
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
        resuming=actions.resume,
        init_from=actions.init_from,
        title=f"RoBERTa ({config.layers} layers of {config.width}) on {config.dataset}, "
        f"seed {config.seed}",
    )


if __name__ == "__main__":
    script.run(main)

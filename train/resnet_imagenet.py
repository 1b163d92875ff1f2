"""Train a ResNet, save every epoch, average the latest k checkpoints, show what LAWA saves.

ResNet-50 on ImageNet: python train/resnet_imagenet.py --lawa_k 5

Half a minute on a CPU: python train/resnet_imagenet.py --config configs/resnet_digits.py

Go on after a stop: python train/resnet_imagenet.py --config ... --resume

What it takes on a TPU slice: python train/resnet_imagenet.py --plan v5e:16x16 --batch_size 16384

Averages of a past run: python train/resnet_imagenet.py --evaluate RUN --lawa_k 5 --end 10 20 30
"""

import dataclasses
import sys

from lawa_jax import script

with script.importing():
    from etils import epath

    from lawa_jax.planning.scripts import in_child, print_image_plan
    from lawa_jax.training import sessions
    from lawa_jax.training.command_line import parse
    from lawa_jax.training.config import ImageConfig
    from lawa_jax.training.image_task import image_task, load_images
    from lawa_jax.training.mesh import Placement
    from lawa_jax.training.runtime import prepare


def main() -> None:
    """Wire the command line to data, task and session."""
    arguments = parse(ImageConfig, "resnet_imagenet", __doc__ or "", sys.argv[1:])
    config, actions = arguments.run, arguments.actions
    if actions.dummy:
        config = dataclasses.replace(config, dataset="dummy")
    prepare(deterministic=actions.deterministic, compile_cache=actions.compile_cache)
    if actions.plan is not None:
        in_child(print_image_plan, config, actions.plan)
        return
    group = actions.join(config)
    task = image_task(config, load_images(config), Placement())
    if actions.evaluate is not None:
        run = epath.Path(actions.evaluate)
        rows = sessions.evaluate_run(
            task,
            run,
            k=config.lawa_k,
            ends=actions.end,
            bn=config.bn,
            splits=actions.splits,
            as_json=actions.json,
        )
        if group.index == 0:
            print(rows)
        return
    sessions.train_run(
        task,
        config,
        bn=config.bn,
        resuming=actions.resume,
        init_from=actions.init_from,
        title=f"{config.arch} on {config.dataset}, seed {config.seed}",
    )


if __name__ == "__main__":
    script.run(main)

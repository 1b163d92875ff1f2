import pytest

from lawa_jax.trajectory.name_steps import step_in_name


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("checkpoint12.pt", 12),
        ("model-00012.safetensors", 12),
        ("model_0004999.pth", 4999),
        ("checkpoint-500", 500),
        ("checkpoint-12.pth.tar", 12),
        ("ckpt_7.pth.tar", 7),
        ("ckpt-5-acc=91.ckpt", 5),
        ("0005.pt", 5),
    ],
)
def test_surely_a_number(name, number):
    reading = step_in_name(name)
    assert (reading.number, reading.sure, reading.kind) == (number, True, "checkpoint")


@pytest.mark.parametrize(
    ("name", "epoch", "step"),
    [
        ("epoch_3.pth", 3, None),
        ("epoch=3-step=900.ckpt", 3, 900),
        ("sample-mnist-epoch=02-val_loss=0.32.ckpt", 2, None),
        ("model_epoch10_acc92.pth", 10, None),
        ("val_avg_loss_3_epoch_4.pt", 4, None),
        ("run_2024-01-15_epoch3.pt", 3, None),
        ("10_epochs.pt", 10, None),
        ("step1000", None, 1000),
        ("step_20240101.pt", None, 20240101),
        ("iter_0001000", None, 1000),
        ("global_step1000", None, 1000),
        ("checkpoint_3_1000.pt", 3, 1000),
        ("recovery-3-250.pth.tar", 3, None),
    ],
)
def test_labelled(name, epoch, step):
    reading = step_in_name(name)
    assert (reading.epoch, reading.step, reading.sure) == (epoch, step, True)
    assert reading.kind == "checkpoint"
    assert reading.mid_epoch == name.startswith(("checkpoint_3", "recovery"))


@pytest.mark.parametrize(
    "name",
    [
        "best-val_loss=0.0785.ckpt",
        "checkpoint.best_bleu_27.5.pt",
        "checkpoint.best_loss_4.1200.pt",
        "model_0.31.pth",
        "best_acc_91.pth",
        "top1_76.pth",
        "model_v3.pth",
        "last-v1.ckpt",
        "model-20240101.pt",
        "model-202401011230.pt",
        "resnet20-12fca82f.th",
        "resnet34-43635321.pth",
        "resnet50.pt",
        "epoch-1e-05.pt",
        "model-00001-of-00005.safetensors",
        "model_best.pth.tar",
        "checkpoint_last.pt",
        "training_args.bin",
    ],
)
def test_no_step(name):
    assert not step_in_name(name).numbered


@pytest.mark.parametrize(
    ("name", "number", "role"),
    [
        ("a_1.ckpt", 1, "a"),
        ("G_100.pth", 100, "g"),
        ("30_net_G.pth", 30, "g"),
        ("02-0.32.ckpt", 2, "0.32"),
        ("model_3.pt", 3, ""),
    ],
)
def test_doubtful(name, number, role):
    reading = step_in_name(name)
    assert (reading.number, reading.sure, reading.role) == (number, False, role)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("avg_10.pt", "average"),
        ("epoch-28-avg-15.pt", "average"),
        ("swa_4.pt", "average"),
        ("ema_0.9999_100000.pt", "ema"),
        ("modelEMA_5.pth", "ema"),
        ("epoch=3-step=900-v1.ckpt", "copy"),
        ("best_bbox_mAP_epoch_12.pth", "copy"),
        ("optimizer.pt", "trainer"),
        ("tmp-checkpoint-500", "unfinished"),
        ("model-00001-of-00005.safetensors", "shard"),
    ],
)
def test_kinds(name, kind):
    assert step_in_name(name).kind == kind

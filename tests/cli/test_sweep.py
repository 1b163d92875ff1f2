import pytest

from lawa_jax.trajectory import list_steps, open_checkpoint, verify_checkpoint


def sweep(lawa, run, *options):
    return lawa("sweep", run, "-k", "2,4", "--end", "6:10:2", "--method", "uniform,ema", *options)


def test_a_dry_run_says_exactly_what_then_happens(lawa, run, tmp_path, model_bytes):
    plan = sweep(lawa, run, "-o", tmp_path / "out", "--dry-run", "--json").json
    assert not (tmp_path / "out").exists()
    assert list(plan["averages"]) == [
        f"k{k}-end{end}-{method}"
        for end in (6, 8, 10) for k in (2, 4) for method in ("uniform", "ema")
    ]  # fmt: skip
    assert plan["averages"]["k2-end8-uniform"] == {
        "method": "uniform",
        "sources": [{"checkpoint": f"{run}@{s}", "coefficient": 0.5} for s in (7, 8)],
    }
    assert plan["checkpoints"] == [f"{run}@{s}" for s in range(3, 11)]
    assert plan["bytes_to_read"] == 8 * model_bytes
    assert plan["bytes_to_write"] == 12 * model_bytes
    done = sweep(lawa, run, "-o", tmp_path / "out", "--json").json
    assert {key: done[key] for key in plan} == plan
    assert done["outputs"] == [str(tmp_path / "out" / name) for name in plan["averages"]]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(plan["averages"])
    for out in done["outputs"]:
        verify_checkpoint(open_checkpoint(out))


def test_for_people(lawa, run, tmp_path):
    planned = sweep(lawa, run, "--dry-run")
    assert planned.out.splitlines()[1].split() == ["k2-end6-uniform", "5", "6", "uniform"]
    assert "12 averages from 8 checkpoints, each read once; reads 5.3 kB" in planned.out
    done = sweep(lawa, run, "-o", tmp_path / "out")
    assert done.out.startswith(f"wrote 12 averages into {tmp_path / 'out'} in ")
    assert "(--bn average)" in done.err
    # A directory of averages is no trajectory.
    assert list_steps(tmp_path / "out") == []


def test_existing_outputs_are_refused(lawa, run, tmp_path):
    options = ["-k", "2", "-o", tmp_path]
    assert lawa("sweep", run, "--end", "5", *options).code == 0
    refused = lawa("sweep", run, "--end", "4,5", *options)
    assert (refused.code, "k2-end5-uniform already exists" in refused.err) == (2, True)
    assert not (tmp_path / "k2-end4-uniform").exists()
    assert lawa("sweep", run, "--end", "4,5", *options, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--end", "3", "-k", "4"], "only 3 exist up to there"),
        (["--end", "30:90:10"], "there is no checkpoint 30 to end at; existing: 1..10"),
        (["--end", ""], "--end: expected numbers such as"),
        (["--end", "5", "-k", "two"], "expected steps as"),
        (["--end", "5", "-k", "2", "--method", "median"], "median"),
        (["--end", "5", "-k", "2", "--method", ""], "the sweep is empty"),
        (["--end", "5", "-k", "2"], "say where to write the averages: -o OUTDIR"),
    ],
)
def test_mistakes_are_explained(lawa, run, options, message):
    finished = lawa("sweep", run, *options)
    assert (finished.code, message in finished.err) == (2, True), finished.err

"""What commands cost a file system: every directory listed once, every file opened once.

The interpreter itself counts (`sys.addaudithook`), so that no way of opening a file is missed.
"""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from lawa_jax.output import write_checkpoint

COUNTED = """
import json, os, sys
from collections import Counter
run, opened, listed = os.path.realpath(sys.argv.pop(1)), Counter(), Counter()
def hook(event, args):
    counter = {"open": opened, "os.scandir": listed, "os.listdir": listed}.get(event)
    if counter is not None and args and isinstance(args[0], (str, os.PathLike)):
        path = os.path.realpath(os.fspath(args[0]))
        if path.startswith(run):
            counter[os.path.relpath(path, run)] += 1
sys.addaudithook(hook)
from lawa_jax.cli.main import execute
code = execute(sys.argv[1:])
print(json.dumps([code, opened, listed]), file=sys.stderr)
"""
STEPS, LEAVES = 12, 5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("cost") / "run"
    for step in range(1, STEPS + 1):
        tree = {"params": {f"w{i}": np.full((3, 2), step + i, np.float32) for i in range(LEAVES)}}
        write_checkpoint(run / "epochs" / str(step), tree, metrics={"val/loss": 1 / step})
    return run


def counted(run, *argv):
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, str(run), *map(str, argv)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    code, opened, listed = json.loads(done.stderr.splitlines()[-1])
    assert not code
    return Counter(opened), Counter(listed)


@pytest.mark.parametrize(
    ("command", "steps"),
    [
        (["ls", "RUN"], range(1, STEPS + 1)),
        (["inspect", "RUN@7"], [7]),
        (["average", "RUN", "-k", "4", "--end", "9", "-o", "OUT"], range(6, 10)),
        (["average", "RUN", "--best", "3", "--metric", "val/loss", "-o", "OUT"], range(10, 13)),
        (["sweep", "RUN", "-k", "1,2,5", "--end", "6:12", "-o", "OUT"], range(2, 13)),
        (["sweep", "RUN", "-k", "2", "--end", "6:9", "--evaluator", "EVAL", "-o", "OUT"],
         range(5, 10)),
        (["sweep", "RUN", "-k", "2", "--end", "6:9", "--evaluator", "EVAL", "--keep", "-o", "OUT"],
         range(5, 10)),
        (["soup", "RUN", "--evaluator", "EVAL", "--steps", "3:6", "-o", "OUT"], range(3, 7)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0] != 7 else "",
)  # fmt: skip
def test_a_command_opens_every_checkpoint_once(run, tmp_path, command, steps):
    evaluator = tmp_path / "score.py"
    evaluator.write_text("def score(tree):\n    return float(tree['params']['w0'][0, 0])\n")
    words = {"RUN": run, "OUT": tmp_path / "out", "EVAL": f"{evaluator}:score"}
    argv = [words.get(w, w.replace("RUN", str(run))) for w in command]
    opened, listed = counted(run, *argv)
    described = Counter({p: n for p, n in opened.items() if p.endswith(("_METADATA", ".zarray"))})
    # What an average takes over from its newest source is read when it is written.
    of_steps = [p for p in described if p.endswith("/_CHECKPOINT_METADATA")]
    assert all(described.pop(path) == 1 for path in of_steps)
    assert described == Counter(
        {
            f"epochs/{step}/model/{name}": 1
            for step in steps
            for name in ("_METADATA", *(f"params.w{i}/.zarray" for i in range(LEAVES)))
        }
    )
    assert not {path: n for path, n in listed.items() if n > 1}
    assert listed["epochs"] == 1
    assert not {p: n for p, n in opened.items() if n > 1 and p.endswith(("metrics", "metadata"))}

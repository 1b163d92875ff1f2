"""Parameters sharded over processes: each writes and reads its shards, and averages agree."""

from pathlib import Path

import numpy as np
import pytest

from lawa_jax.output import write_checkpoint
from lawa_jax.trajectory import list_steps, open_checkpoint, verify_checkpoint

pytestmark = pytest.mark.multiprocess

SHARE = """
import sys
import jax, numpy as np
from etils import epath
from lawa_jax.averaging.device import Accumulator
from lawa_jax.trajectory import open_checkpoint
from lawa_jax.training.run_writer import RunWriter
from lawa_jax.training.sharded_reading import read_sharded
from lawa_jax.distributed import leave
from lawa_jax.errors import CorruptCheckpointError
from lawa_jax.training.command_line import Actions
from lawa_jax.training.mesh import Placement

run, flags = epath.Path(sys.argv[1]), sys.argv[2:]
count, index = int(flags[3]), int(flags[5])
group = Actions(coordinator=flags[1], process_count=count, process_index=index).join()
place = Placement(fsdp=4)
with RunWriter(run, group=group) as writer:
    for epoch in (1, 2):
        rng = np.random.default_rng(epoch)
        tree = {"params": {"kernel": rng.normal(size=(64, 256)).astype(np.float32),
                           "bias": rng.normal(size=256).astype(np.float32)}}
        placed = place.state(tree)
        kernel = placed["params"]["kernel"]
        assert kernel.addressable_shards[0].data.shape == (64, 64), kernel.sharding
        writer.save_epoch(epoch, placed, {"val/loss": 1.0 / epoch})
        writer.save_resume(epoch, {"state": placed, "position": {"step": np.int64(epoch)}})
accumulator = Accumulator()
for epoch in (1, 2):
    accumulator.add(read_sharded(open_checkpoint(run, step=epoch), place.sharding, group))
average = accumulator.result()
assert average["params"]["kernel"].sharding.is_equivalent_to(place.sharding((64, 256)), 2)
with RunWriter(run / "averages", group=group) as writer:
    writer.save_epoch(2, average, {})
# One bit, in the last shard: found by one process, said by all.
if group.index == 0:
    chunk = run / "epochs" / "1" / "model" / "params.kernel" / "0.3"
    data = bytearray(chunk.read_bytes())
    data[0] ^= 1
    chunk.write_bytes(bytes(data))
group.exchange("flipped")
try:
    read_sharded(open_checkpoint(run, step=1), place.sharding, group)
except CorruptCheckpointError as error:
    print("found:", error)
leave(0)
"""


def test_shards_are_written_read_and_averaged_where_they_are(start, tmp_path):
    script = Path(tmp_path / "share.py")
    script.write_text(SHARE)
    run = tmp_path / "run"
    both = start([script, run], 2)
    assert both.wait() == [0, 0], both.text()
    for log in both.logs:
        assert "leaf 'params/kernel': bytes changed since saving" in log.read_text()
    trees = []
    for epoch in (1, 2):
        rng = np.random.default_rng(epoch)
        kernel = rng.normal(size=(64, 256)).astype(np.float32)
        trees.append({"kernel": kernel, "bias": rng.normal(size=256).astype(np.float32)})
    saved = open_checkpoint(run, step=2)
    assert saved.chunk_shape("params/kernel") == (64, 64)
    assert saved.metrics == {"val/loss": 0.5}
    write_checkpoint(tmp_path / "alone", {"params": trees[1]})
    assert saved.checksums == open_checkpoint(tmp_path / "alone").checksums
    assert verify_checkpoint(saved) == 2
    mean = {n: ((trees[0][n].astype(float) + trees[1][n]) / 2).astype("float32") for n in trees[0]}
    average = open_checkpoint(run / "averages", step=2).read_tree()["params"]
    for name, leaf in mean.items():
        assert np.array_equal(average[name], leaf)
    assert list_steps(run / "resume") == [1, 2]

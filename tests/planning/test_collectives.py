"""Collectives read off the text of compiled programs."""

import pytest

from lawa_jax.planning.collectives import Collective, collectives, link_bytes, totals

HLO = """
ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %all-reduce.1 = (f32[64]{0:T(128)S(1)}, bf16[2,3]{1,0}) all-reduce(%a, %b), channel_id=1
  %ag = f32[8,4]{1,0:T(8,128)} all-gather(%p), dimensions={0}
  %ags = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%p), dimensions={0}
  %agd = f32[8,4]{1,0} all-gather-done(%ags)
  %ars = f32[16]{0} all-reduce-start(%p), to_apply=%sum
  %ard = f32[16]{0} all-reduce-done(%ars)
  %rs = f32[2]{0} reduce-scatter(%p), to_apply=%sum
  %flag = pred[] all-reduce(%q), to_apply=%or
  ROOT %copy = f32[8]{0} copy(%all-reduce.1), metadata={op_name="all-gather(of names)"}
}
"""


def test_operations_shapes_and_bytes():
    assert collectives(HLO) == [
        Collective("all-reduce", ((64,), (2, 3)), 64 * 4 + 6 * 2),
        Collective("all-gather", ((8, 4),), 128),
        Collective("all-gather", ((8, 4),), 128),
        Collective("all-reduce", ((16,),), 64),
        Collective("reduce-scatter", ((2,),), 8),
        Collective("all-reduce", ((),), 1),
    ]


def test_totals_by_operation():
    assert totals(collectives(HLO)) == {
        "all-gather": (2, 256),
        "all-reduce": (3, 268 + 64 + 1),
        "reduce-scatter": (1, 8),
    }


@pytest.mark.parametrize(
    ("operation", "sent"), [("all-reduce", 150.0), ("all-gather", 75.0), ("reduce-scatter", 300.0)]
)
def test_what_four_devices_send_for_a_hundred_bytes(operation, sent):
    assert link_bytes([Collective(operation, ((25,),), 100)], 4) == sent


def test_one_device_sends_nothing():
    assert link_bytes(collectives(HLO), 1) == 0

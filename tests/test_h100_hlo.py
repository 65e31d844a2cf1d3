"""Reading compiled programs, on small texts in the form that XLA prints for GPUs."""

import pytest

from tests import h100_hlo

MESH = {"data": 2, "fsdp": 4}


def program(*lines: str, more: str = "") -> str:
    """A program whose entry has these lines."""
    body = "\n".join(f"  {line}" for line in lines)
    entry = f"ENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}"
    return f"HloModule jit_f, is_scheduled=true\n\n{more}\n{entry}\n"


def summary(text: str, mesh=MESH):
    return [(c.kind, c.axis, c.count, c.bytes) for c in h100_hlo.collectives(text, mesh)]


def test_gather_counts_what_it_gives():
    text = program(
        "%ag = bf16[32,16]{1,0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}"
    )
    assert summary(text) == [("all-gather", "fsdp", 1, 2 * 32 * 16)]


def test_start_counts_results_of_all_its_arrays_and_done_nothing():
    text = program(
        "%s = ((bf16[8,3]{1,0}, f32[2]{0}), (bf16[32,3]{1,0}, /*index=5*/f32[8]{0})) "
        "all-gather-start(%x, %y), replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}, dimensions={0}",
        "%d = (bf16[32,3]{1,0}, f32[8]{0}) all-gather-done(%s)",
    )
    assert summary(text) == [("all-gather", "fsdp", 1, 2 * 32 * 3 + 4 * 8)]


@pytest.mark.parametrize(
    "line",
    [
        "%r = f32[2,5]{1,0} reduce-scatter(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%a",
        "%r = ((f32[8,5]{1,0}), f32[2,5]{1,0}) reduce-scatter-start(%x), "
        "replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add",
        "%r = (f32[8,5]{1,0}, f32[2,5]{1,0}) reduce-scatter-start(%x), "
        "replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add",
    ],
)
def test_reduce_scatter_counts_what_it_takes(line):
    assert summary(program(line)) == [("reduce-scatter", "fsdp", 1, 4 * 8 * 5)]


@pytest.mark.parametrize(
    "shape", ["(f32[6]{0}, bf16[4]{0})", "((f32[6]{0}, bf16[4]{0}), (f32[6]{0}, bf16[4]{0}))"]
)
def test_all_reduce_counts_its_arrays_once(shape):
    text = program(f"%r = {shape} all-reduce-start(%x, %y), replica_groups={{}}, to_apply=%add")
    assert summary(text) == [("all-reduce", "data+fsdp", 1, 4 * 6 + 2 * 4)]


@pytest.mark.parametrize(
    ("groups", "axis"),
    [
        ("[2,4]<=[8]", "fsdp"),
        ("[4,2]<=[2,4]T(1,0)", "data"),
        ("{{0,4},{1,5},{2,6},{3,7}}", "data"),
        ("[1,8]<=[8]", "data+fsdp"),
        ("[4,2]<=[8]", h100_hlo.OTHER),
        ("mesh['data'=2,'fsdp'=4] {'data'}", "data"),
        ("mesh['data'=2,'fsdp'=4] {'data','fsdp'}", "data+fsdp"),
        ("mesh['axis_0'=8] {'axis_0'}", "data+fsdp"),
        ("mesh['a'=4,'b'=2], device_ids=(0,4,1,5,2,6,3,7) {'b'}", "data"),
        ("mesh['axis_0'=8] {'axis_0':(2)4}", "fsdp"),
        ("mesh['axis_0'=8] {'axis_0':(1)2}", "data"),
        ("mesh['axis_0'=8] {'axis_0':(1)4}", h100_hlo.OTHER),
    ],
)
def test_groups_of_devices_have_the_name_of_their_mesh_axes(groups, axis):
    text = program(f"%a = f32[8]{{0}} all-to-all(%x), replica_groups={groups}, dimensions={{0}}")
    assert summary(text) == [("all-to-all", axis, 1, 32)]


def test_groups_of_one_device_send_nothing():
    text = program("%a = f32[8]{0} all-reduce(%x), replica_groups=[8,1]<=[8], to_apply=%add")
    assert summary(text) == []


def test_permutation_belongs_to_the_axis_that_it_stays_in():
    ring = "{{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}"
    text = program(f"%p = f32[5]{{0}} collective-permute(%x), source_target_pairs={ring}")
    assert summary(text) == [("collective-permute", "fsdp", 1, 20)]


BODY = """
%fused (q: f32[4]) -> f32[4] {
  ROOT %r = f32[4]{0} all-reduce(%q), replica_groups=[1,8]<=[8], to_apply=%add
}

%body (c: (s32[], f32[4])) -> (s32[], f32[4]) {
  %g = f32[16]{0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}
  %f = ((f32[4]{0}), f32[4]{0}) fusion-start(%x), kind=kCustom, calls=%fused
  %e = f32[4]{0} fusion-done(%f), calls=%fused
}

%condition (c: (s32[], f32[4])) -> pred[] {
  %n = s32[] constant(28)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}
"""


@pytest.mark.parametrize(
    "config", ["", ', backend_config={"known_trip_count":{"n":"28"},"known_init_step":{}}']
)
def test_a_loop_counts_as_often_as_it_runs(config):
    loop = "(s32[], f32[4]{0}) while(%t), condition=%condition, body=%body"
    text = program(f"%w = {loop}{config}", more=BODY)
    assert summary(text) == [
        ("all-gather", "fsdp", 28, 28 * 64),
        ("all-reduce", "data+fsdp", 28, 28 * 16),
    ]


def test_a_loop_in_a_loop_multiplies():
    outer = """
%outer (c: (s32[])) -> (s32[]) {
  %w = (s32[]) while(%c), condition=%condition, body=%body
}
"""
    loop = "%v = (s32[]) while(%t), condition=%condition, body=%outer"
    config = ', backend_config={"known_trip_count":{"n":"3"}}'
    text = program(loop + config, more=BODY + outer)
    assert [c.count for c in h100_hlo.collectives(text, MESH)] == [84, 84]


def test_attention_kernels_are_counted_by_direction():
    call = '(bf16[2]{0}, u8[0]{0}) custom-call(%q), custom_call_target="__cudnn$fmha'
    text = program(f'%a = {call}Softmax"', f'%b = {call}Softmax"', f'%c = {call}SoftmaxBackward"')
    assert h100_hlo.attention_kernels(text) == {"forward": 2, "backward": 1}
    assert h100_hlo.attention_kernels(program("%a = f32[] add(%b, %c)")) == {
        "forward": 0,
        "backward": 0,
    }


def test_bytes_of_shapes():
    assert h100_hlo.shape_bytes("bf16[2,3]{1,0:T(8,128)}") == 12
    assert h100_hlo.shape_bytes("(pred[], s32[], f8e4m3fn[5]{0}, token[])") == 1 + 4 + 5

"""Several devices: the numbers of one, traffic that no brain adds to."""

from typing import cast

import jax
import numpy as np
import pytest

from tests import scale_table
from ubrain_jax import batches, crowd, experiments, optim, train

MESHES = [(8, 1), (1, 8), (2, 4)]
STEPS = 4


@pytest.fixture(scope="module")
def uneven(tmp_path_factory, make_dataset):
    """A store of three subjects, of which only one fills its share of a sample."""
    path = tmp_path_factory.mktemp("uneven") / "t.zarr"
    crowd.write(
        str(path), make_dataset(num_subjects=3, voxels=(37, 23, 90)), image_px=28
    )
    return str(path)


def steps_on(tiny, store, data, voxel):
    """Losses of the first steps, what they drew, and the weights before and after."""
    experiment = tiny(
        data={"crowd": (store,), "stripes": 8, "voxels_per_image": 64},
        mesh={"data": data, "voxel": voxel},
    )
    assert experiment.head.dropout > 0
    run = experiments.prepare_run(experiment, jax.devices()[: data * voxel])
    optimiser = optim.make(experiment.optim, STEPS)
    state, places = train.initial_state(run, optimiser)
    step = train.make_step(run, optimiser, places)
    drawn = batches.dataset(run.stores, experiment.data, experiment.train.seed)
    losses, seen = [], []
    before = jax.tree.map(np.asarray, state.params)
    for k in range(STEPS):
        own = cast(batches.Batch, drawn[k])
        batch = train.put_batch(run.mesh, own)
        seen.append(jax.tree.map(np.asarray, batch)._replace(picture=own.picture))
        state, loss = step(state, run.parts.frozen, batch)
        losses.append(float(loss))
    assert state.params["table"].sharding.shard_shape((8, 1, 1))[0] == 8 // voxel
    return losses, seen, before, jax.tree.map(np.asarray, state.params)


@pytest.fixture(scope="module")
def alone(tiny, uneven):
    return steps_on(tiny, uneven, 1, 1)


def test_the_sample_has_padding_and_voxels_of_every_subject(alone):
    weight = np.concatenate([batch.weight for batch in alone[1]])
    assert set(np.unique(weight)) == {0.0, 1.0}
    per_picture = weight.sum((1, 2))
    # 23, 37 and 64 of 90 voxels: two subjects cannot fill their 64 places.
    assert set(per_picture) == {23, 37, 64}


@pytest.mark.parametrize("mesh", MESHES, ids=lambda m: f"{m[0]}x{m[1]}")
def test_steps_on_any_mesh_are_those_of_one_device(tiny, uneven, alone, mesh):
    losses, seen, before, after = steps_on(tiny, uneven, *mesh)
    for one, many in zip(alone[1], seen, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, many)
    jax.tree.map(np.testing.assert_array_equal, alone[2], before)
    np.testing.assert_allclose(losses, alone[0], rtol=0, atol=1e-5)
    assert len(set(losses)) == STEPS
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(alone[3]),
        jax.tree.leaves(alone[2]),
        jax.tree.leaves(after),
        strict=True,
    )
    for (path, one), start, many in pairs:
        name = jax.tree_util.keystr(path)
        # Adam moves a weight by its rate, 1e-3, at each step.
        assert np.abs(one - start).max() > 1e-3, name
        np.testing.assert_allclose(many, one, rtol=0, atol=1e-5, err_msg=name)


# What must not matter, far apart; all else is small, for a fast compiler.
ROWS = (4_000, 40_000)
SMALL = {
    "data": {"crowd": ("none",), "batch_images": 8, "voxels_per_image": 64},
    "head": {"embed_dim": 16, "channels": 8, "mlp_ratio": 2, "dtype": "float32"},
    "backbone": {
        "name": "",
        "weights": "random",
        "taps": (1,),
        "image_px": 28,
        "dtype": "float32",
    },
}


@pytest.fixture(scope="module")
def programs():
    """Compiled step and evaluation for a mesh and a number of rows, each once."""
    made = {}

    def get(mesh, rows):
        if (mesh, rows) not in made:
            experiment = scale_table.settings(mesh, **SMALL)
            run = scale_table.shapes_of_run(experiment, scale_table.SMALL, rows)
            step = scale_table.compile_step(run)
            score = scale_table.compile_evaluation(run, 8, 512)
            made[mesh, rows] = experiment, step, score
        return made[mesh, rows]

    return get


def bytes_of(compiled):
    return scale_table.by_kind(scale_table.collectives(compiled.as_text()))


def test_a_step_sends_the_same_bytes_for_ten_times_the_voxels(programs):
    _, small, _ = programs((1, 8), ROWS[0])
    experiment, large, _ = programs((1, 8), ROWS[1])
    assert bytes_of(small) == bytes_of(large)
    table = 4 * ROWS[0] * 16 // 8
    assert all(x.size < table for x in scale_table.collectives(large.as_text()))
    # Features must travel, so a count of nothing is a count gone wrong.
    counted = scale_table.count_traffic(experiment, scale_table.SMALL, ROWS[1], 1, 8)
    assert bytes_of(large)["all-gather"] == counted["features"]
    assert bytes_of(large)["total"] == pytest.approx(sum(counted.values()), rel=0.1)


@pytest.mark.parametrize("mesh", [(2, 4), (8, 1)], ids=lambda m: f"{m[0]}x{m[1]}")
def test_over_data_the_dense_gradient_of_the_table_is_summed_and_no_more(
    programs, mesh
):
    """4 bytes for each number of the stripes of a device, and nothing else grows."""
    small, large = (bytes_of(programs(mesh, rows)[1])["total"] for rows in ROWS)
    assert large - small == 4 * 16 * (ROWS[1] - ROWS[0]) // mesh[1]


@pytest.mark.parametrize("mesh", MESHES, ids=lambda m: f"{m[0]}x{m[1]}")
def test_evaluation_never_moves_the_table(programs, mesh):
    small, large = (bytes_of(programs(mesh, rows)[2]) for rows in ROWS)
    assert small == large
    assert small["total"] > 0 or mesh == (8, 1)


PROGRAM = """
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %s = f32[] add(%x, %y)
}

%inner (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %ar = f32[8,4]{1,0} all-reduce(%v), replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %ar)
}

%test (p: (s32[], f32[8,4])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%outer (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %w = (s32[], f32[8,4]{1,0}) while(%p), condition=%test, body=%inner, \
backend_config={"known_trip_count":{"n":"5"}}
  %cp = bf16[10]{0} collective-permute(%x), source_target_pairs={{0,1}}
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %y)
}

%wrapped (p: f32[16]) -> f32[2] {
  ROOT %rs = f32[2]{0} reduce-scatter(%p), to_apply=%add
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %ar = (f32[2]{0}, /*index=1*/s32[3]{0}, pred[]) all-reduce(%a, %b, %c), to_apply=%add
  %ags = (f32[1,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%a), dimensions={0}
  %agd = f32[8,4]{1,0} all-gather-done(%ags)
  %rss = ((f32[16]), f32[2], u32[]) async-start(%g), calls=%wrapped
  %rsd = f32[2]{0} async-done(%rss)
  %name.all-to-all = f32[99]{0} add(%a, %b), metadata={op_name="all-to-all("}
  %w = (s32[], f32[8,4]{1,0}) while(%z), condition=%test, body=%outer, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %r = f32[8,4]{1,0} get-tuple-element(%w), index=1
}
""".replace("\\\n", "")


def test_collectives_are_counted_in_every_form_that_xla_prints():
    """Tuples, asynchronous halves, calls and loops, by hand."""
    found = scale_table.collectives(PROGRAM)
    assert sorted(found) == [
        ("all-gather", 8 * 4 * 4, 1),
        ("all-reduce", 2 * 4 + 3 * 4 + 1, 1),
        ("all-reduce", 8 * 4 * 4, 15),
        ("collective-permute", 10 * 2, 3),
        ("reduce-scatter", 2 * 4, 1),
    ]
    assert scale_table.by_kind(found)["total"] == 128 + 21 + 15 * 128 + 60 + 8


def test_a_collective_that_cannot_be_counted_is_refused():
    endless = PROGRAM.replace('"known_trip_count":{"n":"5"}', "")
    with pytest.raises(ValueError, match="loop of unknown length: inner"):
        scale_table.collectives(endless)
    with pytest.raises(ValueError, match="size of f8e4m3 is not known"):
        scale_table.collectives(PROGRAM.replace("bf16[10]", "f8e4m3[10]"))

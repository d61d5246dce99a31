"""The flat map of embeddings."""

import re
import sys

import numpy as np
import pytest
from PIL import Image

from ubrain_jax import errors
from ubrain_jax.atlas import flat, pooled
from ubrain_jax.model import bundle


def make_table(counts=(60, 40), regions=("V1v", "<b>$PPA"), size=5, seed=0):
    """Two kinds of voxels, far apart, in every subject."""
    rng = np.random.default_rng(seed)
    subjects = []
    for k, count in enumerate(counts):
        kind = np.arange(count) % len(regions)
        x = 0.2 * rng.standard_normal((count, size)) + 2 * np.eye(size)[kind % size]
        subjects.append(
            bundle.Subject(
                f"s{k}",
                (x * rng.uniform(0.1, 9, (count, 1))).astype(np.float32),
                np.zeros((count, 3), np.int32),
                kind[:, None] == np.arange(len(regions)),
                regions,
                np.full(count, np.nan, np.float32),
                {},
                {},
            )
        )
    return pooled.pool(subjects, {s.name: np.ones(len(s.roi)) for s in subjects})


def test_pca_is_that_of_unit_embeddings_by_singular_values():
    table = make_table()
    x = table.embedding.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x -= x.mean(0)
    _, singular, directions = np.linalg.svd(x, full_matrices=False)
    expected = x @ directions[:2].T
    found = flat.map2d(table)
    np.testing.assert_allclose(np.abs(found.xy), np.abs(expected), atol=1e-4)
    shares = 100 * singular**2 / (singular**2).sum()
    told = [int(re.search(r"\((\d+)%", axis)[1]) for axis in found.axes]
    assert told == [round(share) for share in shares[:2]]
    again = flat.map2d(table, seed=5)
    np.testing.assert_array_equal(again.xy, found.xy)


def test_unknown_methods_and_too_few_voxels_are_refused():
    with pytest.raises(errors.ConfigError, match="'tsne'; expected pca, umap"):
        flat.map2d(make_table(), method="tsne")
    with pytest.raises(errors.ConfigError, match="2 voxels; expected 3 or more"):
        flat.map2d(make_table((2,)))
    with pytest.raises(errors.ConfigError, match="16 or more for umap"):
        flat.map2d(make_table((15,)), method="umap")


def test_without_umap_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(errors.ConfigError, match=r"ubrain_jax\[viz\]"):
        flat.map2d(make_table(), method="umap")


@pytest.mark.slow
def test_umap_is_the_same_under_a_seed_and_keeps_kinds_apart():
    pytest.importorskip("umap", reason="needs umap-learn: pip install '.[viz]'")
    table = make_table()
    found = flat.map2d(table, method="umap", seed=1)
    np.testing.assert_array_equal(flat.map2d(table, method="umap", seed=1).xy, found.xy)
    assert not np.array_equal(flat.map2d(table, method="umap", seed=2).xy, found.xy)
    far = np.linalg.norm(found.xy[:, None] - found.xy, axis=-1)
    np.fill_diagonal(far, np.inf)
    kind = table.roi.argmax(1)
    assert (kind[far.argmin(1)] == kind).mean() > 0.98


def test_a_panel_for_all_that_is_known():
    table = make_table()
    table.roi[:10] = False  # of no region
    table.roi[10, :] = True  # of both
    titles = [c.title for c in flat.colours(table)]
    assert titles == ["region", "subject", "score (pearson)"]
    far = np.arange(100.0)
    found = flat.colours(
        table,
        cluster=np.arange(100) % 4 - 1,
        roi_names=["<b>$PPA", "V1v"],
        more={"size": far},
    )
    region, _, cluster, _, more = found
    assert region.names == ("<b>$PPA", "V1v")
    assert region.values[:11].tolist() == [-1] * 10 + [0]
    assert cluster.names == ("0", "1", "2")
    np.testing.assert_array_equal(more.values, far)
    bare = table._replace(roi=np.zeros((100, 0), bool), roi_names=(), score_name="")
    bare = bare._replace(score=np.full(100, np.nan, np.float32))
    assert [c.title for c in flat.colours(bare)] == ["subject"]


def test_regions_without_voxels_have_no_place_in_the_legend():
    table = make_table()
    inside = np.concatenate([np.zeros((100, 1), bool), table.roi], 1)
    table = table._replace(roi=inside, roi_names=("none", *table.roi_names))
    [region, *_] = flat.colours(table)
    assert region.names == ("V1v", "<b>$PPA")
    np.testing.assert_array_equal(region.values, table.roi[:, 2].astype(int))


def test_the_same_map_is_the_same_picture_and_more_points_are_told(tmp_path):
    table = make_table()
    found = flat.map2d(table)
    panels = [
        *flat.colours(table, cluster=np.arange(100) % 9),
        flat.Colour("far <b>", np.where(np.arange(100) < 9, np.nan, found.xy[:, 0])),
        flat.Colour("nothing", np.full(100, np.nan)),
    ]
    for name in ("a", "b"):
        flat.draw(tmp_path / name, found, panels, "All.", most_points=70)
    for ending in ("png", "svg"):
        first, second = (tmp_path / f"{n}.{ending}" for n in "ab")
        assert first.read_bytes() == second.read_bytes()
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert picture.shape[1] == 3 * 4.4 * 160
    for colour in ([0, 114, 178], [213, 94, 0], [0xC8] * 3):
        assert (picture == colour).all(-1).sum() > 50
    text = (tmp_path / "a.svg").read_text()
    assert "<b>" not in text
    with pytest.raises(errors.ConfigError, match="nothing to draw"):
        flat.draw(tmp_path / "c", found, [], "")


def test_the_caption_says_how_many_points_are_drawn(tmp_path, monkeypatch):
    told = []
    real = flat.charts.write_caption
    monkeypatch.setattr(
        flat.charts,
        "write_caption",
        lambda fig, text: (told.append(text), real(fig, text)),
    )
    table = make_table()
    found, panels = flat.map2d(table), flat.colours(table)[:1]
    flat.draw(tmp_path / "a", found, panels, "All.", most_points=70)
    flat.draw(tmp_path / "b", found, panels, "All.", most_points=100)
    assert told == ["All. 70 of 100 voxels, drawn by chance.", "All."]


def test_names_do_not_cover_each_other():
    rng = np.random.default_rng(0)
    places = np.concatenate([rng.random((20, 2)), np.full((20, 2), 0.5)])
    widths = rng.uniform(0.05, 0.2, 40)
    placed = flat._apart(places, widths, 0.04)
    np.testing.assert_array_equal(placed[:, 0], places[:, 0])
    for a in range(40):
        for b in range(a):
            beside = abs(placed[a, 0] - placed[b, 0]) >= (widths[a] + widths[b]) / 2
            assert beside or abs(placed[a, 1] - placed[b, 1]) >= 0.04 - 1e-6

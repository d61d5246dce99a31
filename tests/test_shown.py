"""Pictures to show voxels, and what was measured to them."""

import numpy as np
import pytest

from ubrain_jax import crowd, errors, shown


def positions(paths):
    return {s.name: s.position for s in crowd.open_crowd(paths).subjects}


def test_test_pictures_come_with_their_responses(store):
    found = shown.of_stores([store], positions([store]), 28, 100)
    stores = crowd.open_crowd([store])
    assert set(found.ids) == {f"t/{k:04d}" for k in range(4)}
    for subject in stores.subjects:
        for sample in subject.samples("test"):
            name = stores.image_id[subject.image[sample]]
            row = found.ids.index(name)
            own = crowd.read_responses(subject, np.array([sample]))[0]
            np.testing.assert_array_equal(found.measured[subject.name][row], own)
            pixels = crowd.read_pictures(stores, subject.image[[sample]])[0]
            np.testing.assert_array_equal(found.pixels[row], pixels)


def test_a_picture_that_a_subject_did_not_see_is_nan(store, dataset_store):
    other = dataset_store(num_subjects=1, seed=3)
    # The other store has the same subject names: only one of its subjects is asked.
    with pytest.raises(errors.InputError, match="t-subj01"):
        shown.of_stores([store, other], {}, 28, 100)
    only = {"t-subj02": positions([store])["t-subj02"]}
    found = shown.of_stores([store], only, 28, 3)
    assert list(found.measured) == ["t-subj02"]
    assert len(found.ids) == 3


def test_voxels_and_pictures_of_others_are_refused(store):
    wrong = {k: v + 1 for k, v in positions([store]).items()}
    with pytest.raises(errors.InputError, match="others than the encoder's"):
        shown.of_stores([store], wrong, 28, 10)
    with pytest.raises(errors.InputError, match="28 pixels"):
        shown.of_stores([store], {}, 112, 10)


def test_a_folder_is_cut_and_says_so():
    pictures = np.zeros((5, 40, 40, 3), np.uint8)
    pictures[:, :, :, 0] = np.arange(5)[:, None, None] * 50
    found = shown.of_images(pictures, 28, 3)
    assert found.ids == ("0", "1", "2")
    assert found.pixels[:, 0, 0, 0].tolist() == [0, 50, 100]
    assert "first 3 of 5" in found.notes[0]
    assert not found.measured

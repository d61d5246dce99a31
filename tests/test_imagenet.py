"""Finding pictures by their ImageNet names."""

import pytest

from ubrain_jax import errors
from ubrain_jax.datasets import imagenet

NAMES = {"n01443537_22563", "n01443537_7", "n15075141_9"}


def place(root, *paths, content=b"x"):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def test_finds_pictures_in_any_folder_and_under_any_ending(tmp_path):
    place(
        tmp_path,
        "train/n01443537/n01443537_22563.JPEG",
        "train/n01443537/n01443537_225.JPEG",
        "test/n01443537_7.png",
        "n15075141_9.JpG",
        "n15075141_9.txt",
        "n02000000/n01443537_7.png",  # not searched: no picture of it is wanted
        content=b"y",
    )
    report: list[str] = []
    found = imagenet.find_pictures(tmp_path, NAMES, report)
    assert list(found) == sorted(NAMES)
    assert [str(p.relative_to(tmp_path)) for p in found.values()] == [
        "train/n01443537/n01443537_22563.JPEG",
        "test/n01443537_7.png",
        "n15075141_9.JpG",
    ]
    assert report == []


def test_follows_links_once(tmp_path):
    place(tmp_path, *(f"real/{name}.jpg" for name in NAMES))
    (tmp_path / "images").mkdir()
    (tmp_path / "images/set").symlink_to(tmp_path / "real")
    (tmp_path / "real/back").symlink_to(tmp_path / "images")
    found = imagenet.find_pictures(tmp_path / "images", NAMES, [])
    assert found["n15075141_9"] == tmp_path / "images/set/n15075141_9.jpg"


def test_identical_files_count_and_different_ones_are_refused(tmp_path):
    place(tmp_path, *(f"a/{name}.jpg" for name in NAMES))
    place(tmp_path, "b/n01443537_7.JPEG")
    report: list[str] = []
    found = imagenet.find_pictures(tmp_path, NAMES, report)
    assert found["n01443537_7"].parent.name == "a"
    assert report == ["1 pictures lie in several identical files"]
    place(tmp_path, "b/n01443537_7.JPEG", content=b"z")
    with pytest.raises(
        errors.InputError,
        match=r"1 names stand for different files: a/n01443537_7\.jpg and b/n0144",
    ):
        imagenet.find_pictures(tmp_path, NAMES, [])


def test_missing_pictures_are_listed_up_to_twenty(tmp_path):
    place(tmp_path, "n01443537_7.jpg")
    names = {f"n01443537_{k}" for k in range(100, 125)} | {"n01443537_7"}
    with pytest.raises(errors.MissingInputError) as caught:
        imagenet.find_pictures(tmp_path, names, [])
    text = str(caught.value)
    assert "25 of 26 pictures missing: n01443537_100, " in text
    assert "n01443537_119 and 5 more; expected a picture file for each" in text
    with pytest.raises(errors.MissingInputError, match="no such folder"):
        imagenet.find_pictures(tmp_path / "none", names, [])

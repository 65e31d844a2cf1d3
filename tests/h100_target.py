"""An H100, or eight, for JAX's compiler on a machine without one."""

import contextlib
import math
import pathlib
from collections.abc import Iterator, Mapping
from unittest import mock

import jax
import numpy as np
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental import topologies

from vidgen.models import attention

SPEC = pathlib.Path(__file__).parent / "data" / "h100_sxm.txtpb"
CUDNN_VERSION = 91000  # 9.10, as SPEC says


def make_mesh(shape: Mapping[str, int]) -> jax.sharding.Mesh:
    """A mesh of H100s of one machine, which can be compiled for and not run on."""
    sizes = tuple(shape.values())
    topology = f"1x1x{math.prod(sizes)}"  # slices x hosts x GPUs of a host
    found = topologies.get_topology_desc(
        platform="cuda", topology=topology, target_config=SPEC.read_text()
    )
    types = (jax.sharding.AxisType.Auto,) * len(sizes)
    devices = np.asarray(found.devices).reshape(sizes)
    return jax.sharding.Mesh(devices, tuple(shape), axis_types=types)


@contextlib.contextmanager
def chosen() -> Iterator[None]:
    """Lets vidgen and JAX choose as on an H100: bfloat16, and cuDNN's attention.

    What they ask is the default backend, and JAX also the driver for its version of cuDNN.
    """
    attention._kernel.cache_clear()
    with contextlib.ExitStack() as stack:
        patch = lambda *names: stack.enter_context(mock.patch.object(*names))
        patch(jax, "default_backend", lambda: "gpu")
        patch(cudnn, "check_cudnn_version", lambda: CUDNN_VERSION)
        patch(cudnn, "check_compute_capability", lambda capability: float(capability) <= 9.0)
        patch(cudnn, "is_cuda_compute_capability_equal", lambda capability: capability == "9.0")
        yield
    attention._kernel.cache_clear()

"""Reads the golden cases: weights, inputs and outputs of the reference implementation.

A case is a folder `tests/golden/NAME` with `case.json` (configuration, tolerances) and
`tensors.safetensors`. Its tensors keep the PyTorch layout, channels before sizes.
"""

import dataclasses
import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

FOLDER = pathlib.Path(__file__).parent / "golden"

# (pattern, replacement), in order, on the reference's names; dots part the path
VAE_RULES = (
    (r"^spatial_vae\.module\.", "spatial."),
    (r"^temporal_vae\.", "temporal."),
    (r"^(temporal\..*)\.conv\.(weight|bias)$", r"\1.\2"),
    (r"\.(down|up)samplers\.0\.", "."),
    (r"\.attentions\.0\.", ".attention."),
    (r"\.to_out\.0\.", ".to_out."),
    (r"(norm\w*)\.weight$", r"\1.scale"),
    (r"\.weight$", ".kernel"),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One golden case; `tensors` holds every tensor under its full name, such as `input/T5/x`."""

    name: str
    spec: dict
    tensors: dict

    @property
    def config(self) -> dict:
        return self.spec["config"]

    @property
    def data(self) -> dict:
        return self.spec["data"]

    @property
    def variants(self) -> list[str]:
        return sorted(self.spec["variants"])

    def state_dict(self) -> dict[str, np.ndarray]:
        return self.group("state_dict")

    def inputs(self, variant: str) -> dict[str, np.ndarray]:
        return self.group(f"input/{variant}")

    def outputs(self, variant: str) -> dict[str, np.ndarray]:
        return self.group(f"output/{variant}")

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        start = f"{prefix}/"
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def check(self, name: str, got) -> float:
        """Asserts that `got` equals output `VARIANT/NAME` within its tolerance.

        Returns the largest error as a share of the tolerance.
        """
        expected = self.tensors[f"output/{name}"]
        got = np.asarray(got)
        assert got.shape == expected.shape, f"{name}: got shape {got.shape}, not {expected.shape}"
        if not np.issubdtype(expected.dtype, np.floating):
            np.testing.assert_array_equal(got, expected, err_msg=name)
            return 0.0
        atol = self.spec["outputs"][f"output/{name}"]["atol"]
        error = float(np.abs(got - expected).max(initial=0))
        assert error <= atol, f"{name}: error {error:.3g} exceeds the tolerance {atol:.3g}"
        return error / atol


@functools.cache
def load_case(name: str) -> Case:
    """Reads a golden case by the name of its folder."""
    spec = json.loads((FOLDER / name / "case.json").read_text())
    path = FOLDER / name / "tensors.safetensors"
    return Case(name, spec, safetensors.numpy.load_file(path) if path.exists() else {})


def channels_last(x):
    """[B, C, ...] -> [B, ..., C]."""
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def channels_first(x):
    """[B, ..., C] -> [B, C, ...]."""
    return np.moveaxis(np.asarray(x), -1, 1)


def transpose(weight):
    """Linear [out, in] and convolution [out, in, *size] weights as [*size, in, out]."""
    return np.transpose(weight, (*range(2, weight.ndim), 1, 0)) if weight.ndim > 1 else weight


def rename(name: str, rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def to_params(state_dict, rules, prefix: str = "") -> dict:
    """Nested dict of JAX arrays of a PyTorch state dict whose names first get `prefix`."""
    params = {}
    for name, value in state_dict.items():
        *path, leaf = rename(prefix + name, rules).split(".")
        node = functools.reduce(lambda node, key: node.setdefault(key, {}), path, params)
        node[leaf] = jnp.asarray(transpose(value))
    return params


def vae_params(state_dict, prefix: str = "") -> dict:
    """Params of `vae.VideoVAE`; `prefix` places the state dict of one of its halves."""
    params = to_params(state_dict, VAE_RULES, prefix)
    for name in ("shift", "scale"):
        if name in params:
            params[name] = params[name].reshape(-1)
    return params


def with_params(model, params):
    """The nnx model with its parameters replaced; names and shapes must agree exactly."""
    graph, state = nnx.split(model)
    shapes = lambda tree: {
        jax.tree_util.keystr(path): value.shape
        for path, value in jax.tree_util.tree_leaves_with_path(tree)
    }
    expected, got = shapes(nnx.to_pure_dict(state)), shapes(params)
    differing = {k: (expected.get(k), got.get(k)) for k in expected.keys() | got.keys()}
    differing = {k: v for k, v in differing.items() if v[0] != v[1]}
    assert not differing, f"parameters that differ, model and file: {differing}"
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def abstract(make):
    """The model that `make(rngs)` gives, with shapes in place of arrays.

    Creating a model for real compiles a small program for every shape, which takes far longer than
    most tests.
    """
    return nnx.eval_shape(lambda: make(nnx.Rngs(0)))


def random_model(make, seed: int = 0):
    """The model that `make(rngs)` gives, filled without compiling anything.

    Kernels are normal with variance 1 / fan in; vectors are normal around 1 if they scale a norm
    and around 0 if not, with deviation 0.1.
    """
    graph, state = nnx.split(abstract(make))
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        normal = rng.standard_normal(leaf.shape)
        if leaf.ndim > 1:
            value = normal / np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            is_scale = any(name in jax.tree_util.keystr(path) for name in ("scale", "weight"))
            value = 0.1 * normal + is_scale
        return jnp.asarray(value, leaf.dtype)

    params = jax.tree_util.tree_map_with_path(fill, nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)

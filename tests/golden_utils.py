"""Reads the golden cases: weights, inputs and outputs of the reference implementation.

A case is a folder `tests/golden/NAME` with `case.json` (configuration, tolerances) and
`tensors.safetensors`. Its tensors keep the PyTorch layout, channels before sizes.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

from vidgen.weights import torch_names, tree_files

FOLDER = pathlib.Path(__file__).parent / "golden"


# Without most of the compiler's passes, which take far longer than running such small programs.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Inputs(dict):
    """Tensors by name, which remember what was read."""

    def __init__(self, tensors):
        super().__init__(tensors)
        self.read = set()

    def __getitem__(self, name):
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name, default=None):
        self.read.add(name)
        return super().get(name, default)


@dataclasses.dataclass
class Case:
    """One golden case, and which of its tensors and data were checked so far.

    Args:
        name: Of its folder.
        spec: `case.json`.
        tensors: Every tensor under its full name, such as `input/T5/x`.
    """

    name: str
    spec: dict
    tensors: dict
    worst: float = 0.0
    checked: set = dataclasses.field(default_factory=set)
    taken: set = dataclasses.field(default_factory=set)
    read: dict = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.spec["case"]

    @property
    def config(self) -> dict:
        return self.spec["config"]

    @property
    def data(self) -> dict:
        return self.spec["data"]

    @property
    def variants(self) -> list[str]:
        return sorted(self.spec["variants"])

    def take(self, name: str):
        """An entry of the case's data, which then counts as checked."""
        self.taken.add(name)
        return self.data[name]

    def state_dict(self) -> dict[str, np.ndarray]:
        return self.group("state_dict")

    def inputs(self, variant: str) -> Inputs:
        if variant not in self.read:
            self.read[variant] = Inputs(self.group(f"input/{variant}"))
        return self.read[variant]

    def outputs(self, variant: str) -> dict[str, np.ndarray]:
        return self.group(f"output/{variant}")

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        start = f"{prefix}/"
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def check(self, name: str, got) -> None:
        """Asserts that `got` equals output `VARIANT/NAME` within its tolerance."""
        expected = self.tensors[f"output/{name}"]
        self.checked.add(f"output/{name}")
        got = np.asarray(got)
        assert got.shape == expected.shape, f"{name}: got shape {got.shape}, not {expected.shape}"
        if not np.issubdtype(expected.dtype, np.floating):
            np.testing.assert_array_equal(got, expected, err_msg=name)
            return
        self.compare(name, got, expected, self.spec["outputs"][f"output/{name}"]["atol"])

    def check_all(self, variant: str, got: dict) -> None:
        """Checks those outputs of a variant that `got` has by name."""
        for name in self.outputs(variant):
            if name in got:
                self.check(f"{variant}/{name}", got[name])

    def compare(self, name: str, got, expected, atol) -> None:
        """Asserts that floats agree, and keeps the largest error as a share of the tolerance."""
        error = np.abs(np.asarray(got, np.float64) - np.asarray(expected, np.float64))
        share = float(np.max(error / atol, initial=0))
        assert share <= 1, f"{name}: the error is {share:.3g} of the tolerance {np.max(atol):.3g}"
        self.worst = max(self.worst, share)

    def check_complete(self) -> None:
        """Asserts that nothing of the case was left out."""
        outputs = {name for name in self.tensors if name.startswith("output/")}
        known = {f"input/{v}/{name}" for v, inputs in self.read.items() for name in inputs.read}
        inputs = {name for name in self.tensors if name.startswith("input/")}
        others = (
            set(self.tensors) - outputs - inputs - {f"state_dict/{n}" for n in self.state_dict()}
        )
        data = set(self.spec.get("data", {})) - self.taken
        left = sorted((outputs - self.checked) | (inputs - known) | others | data)
        assert not left, f"{self.name} holds what no check knows: {left[:20]}, {len(left)} in all"


def open_case(folder: pathlib.Path) -> Case:
    """Reads the golden case of a folder."""
    spec = json.loads((folder / "case.json").read_text())
    path = folder / "tensors.safetensors"
    return Case(folder.name, spec, safetensors.numpy.load_file(path) if path.exists() else {})


def load_case(name: str) -> Case:
    """Reads one of the project's own golden cases."""
    return open_case(FOLDER / name)


def channels_last(x):
    """[B, C, ...] -> [B, ..., C]."""
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def channels_first(x):
    """[B, ..., C] -> [B, C, ...]."""
    return np.moveaxis(np.asarray(x), -1, 1)


def shapes_of(model) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's parameters by path, such as "blocks/attn/kernel"."""
    flat = tree_files.flatten(nnx.to_pure_dict(nnx.state(model)))
    return {path: tuple(value.shape) for path, value in flat.items()}


def from_torch(state_dict, tensors) -> dict:
    """Params tree of a PyTorch state dict with exactly the tensors of `vidgen.weights.torch_names`.

    Copies under another name have to be equal.
    """
    expected = {name: t.shape for t in tensors for name in (t.name, *t.aliases)}
    got = {name: value.shape for name, value in state_dict.items()}
    differing = {k: (expected.get(k), got.get(k)) for k in expected.keys() | got.keys()}
    differing = {k: v for k, v in differing.items() if v[0] != v[1]}
    assert not differing, f"tensors that differ, model and file: {differing}"
    for tensor in tensors:
        for alias in tensor.aliases:
            np.testing.assert_array_equal(state_dict[alias], state_dict[tensor.name])
    flat = torch_names.to_params(tensors, state_dict.__getitem__)
    return tree_files.unflatten({path: jnp.asarray(value) for path, value in flat.items()})


@contextlib.contextmanager
def recording(*classes, functions=()):
    """Yields a dict that collects (module, arguments, result) of each call, by class.

    `functions` are (module, name). Scans become loops meanwhile, so that what happens in them can
    leave the trace.
    """
    calls = collections.defaultdict(list)

    def wrap(key, original):
        def call(*args, **kwargs):
            out = original(*args, **kwargs)
            calls[key].append((args[0], args[1:], out))
            return out

        return call

    def loop(step, carry, xs, **kwargs):
        for i in range(len(jax.tree.leaves(xs)[0])):
            carry, _ = step(carry, jax.tree.map(lambda x, i=i: x[i], xs))
        return carry, None

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(jax.lax, "scan", loop))
        for cls in classes:
            patch = mock.patch.object(cls, "__call__", wrap(cls.__name__, cls.__call__))
            stack.enter_context(patch)
        for module, name in functions:
            patch = mock.patch.object(module, name, wrap(name, getattr(module, name)))
            stack.enter_context(patch)
        yield calls


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

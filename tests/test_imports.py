"""The layers, read from the syntax trees: who may import whom."""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
OURS = ("vidgen", "data_pipelines", "configs")
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
COMMANDS = {"train", "sample", "evaluate", "encode", "convert", "serve", "watch", "plan"}
COMMANDS |= {"doctor", "bench", "average", "quickstart", "report", "bench_data"}
MODEL_BASE = ("vidgen.models.layers", "vidgen.models.attention")
BASE = {"vidgen.flow", "vidgen.sharding", "vidgen.torch_names", "vidgen.compat", *MODEL_BASE}
PLATFORM = {"optim", "checkpoint", "digests", "workdir", "metrics", "data", "runtime"}
PLATFORM |= {"command_line", "trackers"}
PLATFORM = {f"vidgen.{name}" for name in PLATFORM}


@functools.cache
def modules():
    """Every module of ours by dotted name."""
    found = {}
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports(name):
    """All modules that `name` imports, lazily inside functions too; ours with full names."""
    path, found = modules()[name], set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join(above + [base] * bool(base))
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return frozenset(
        target if target.split(".")[0] not in OURS or target in modules() else ""
        for target in found
    ) - {""}


def ours(name):
    return {target for target in imports(name) if target.split(".")[0] in OURS} - set(OURS)


def reach(name, seen):
    """Everything that importing `name` loads, through our own modules and their packages."""
    for target in imports(name):
        for step in (target, target.split(".")[0]):
            if step not in seen:
                seen.add(step)
                if step in modules():
                    reach(step, seen)
    return seen


def under(*prefixes):
    return [name for name in modules() if name.startswith(prefixes)]


def is_command(name):
    return name.startswith("vidgen.") and name.split(".")[1] in COMMANDS


@pytest.mark.parametrize("name", under("data_pipelines", "configs"))
def test_pipelines_and_configs_never_reach_jax_or_vidgen(name):
    top = {target.split(".")[0] for target in reach(name, set())}
    assert not top & (JAX | {"vidgen"}), f"{name}: a loader worker would take GPU memory"


@pytest.mark.parametrize("name", under("configs"))
def test_configs_import_only_ml_collections_and_each_other(name):
    top = {target.split(".")[0] for target in imports(name)}
    assert top <= {"ml_collections", "configs", "re", "types", "dataclasses"}


@pytest.mark.parametrize("name", under("vidgen.models"))
def test_models_never_see_config_or_optimizer_and_the_mesh_only_by_hints(name):
    assert not {"ml_collections", "optax", "orbax"} & {t.split(".")[0] for t in imports(name)}
    assert "jax.sharding" not in imports(name)
    if name in MODEL_BASE:
        assert ours(name) <= {"vidgen.models", "vidgen.sharding", "vidgen.compat", *MODEL_BASE}
    else:
        assert all(t in BASE or t.startswith("vidgen.models") for t in ours(name)), ours(name)


@pytest.mark.parametrize("name", sorted((PLATFORM | BASE) & set(modules())))
def test_platform_modules_take_trees_and_not_models(name):
    allowed = {
        f"vidgen.{name}" for name in ("sharding", "digests", "trackers", "weights", "compat")
    }
    if name in BASE:
        allowed = {"vidgen.models", "vidgen.sharding", "vidgen.compat", *MODEL_BASE}
    assert all(t in allowed or t.startswith("data_pipelines") for t in ours(name)), ours(name)


@pytest.mark.parametrize("name", [name for name in modules() if not is_command(name)])
def test_no_library_module_imports_a_command(name):
    assert not [target for target in imports(name) if is_command(target)]


def test_no_import_goes_in_a_circle():
    def visit(name, path):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for target in sorted(ours(name) - {"vidgen.models"}):
                visit(target, [*path, name])
            done.add(name)

    done = set()
    for name in modules():
        visit(name, [])

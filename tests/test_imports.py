"""The layers, read from the syntax trees: who may import whom."""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
OURS = ("vidgen", "data_pipelines", "configs")
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
# What each folder may import besides itself. Arrows point one way, so a folder can be read, and
# moved, without those above it. The commands stand on top; `data_pipelines` never sees `vidgen`.
FOLDERS = {
    "data_pipelines": {
        "media": set(),
        "process": set(),
        "workers": set(),
        "sources": {"media", "process"},
        "fetching": {"media", "process", "sources"},
        "shards": set(),
        "loading": {"media", "shards", "workers"},
        "embedded": {"media"},
        "stages": {"media", "shards", "sources", "workers"},
        "browse": {"loading", "media", "shards", "sources", "stages", "workers"},
    },
    "vidgen": {
        "process": set(),
        "launching": {"process"},
        "models": set(),
        "weights": {"models"},
        "training": {"models", "process", "weights"},
        "diffusion": {"models", "training", "weights"},
        "tasks": {"diffusion", "models", "process", "training", "weights"},
        "reporting": {"diffusion", "process", "weights"},
    },
}


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
    """Commands are the files on top of a package, and `__main__` of a folder."""
    package, *rest = name.split(".")
    if package not in FOLDERS or name not in modules():
        return False
    is_file = len(rest) == 1 and modules()[name].name != "__init__.py"
    return is_file or rest[-1:] == ["__main__"]


@pytest.mark.parametrize("name", under("data_pipelines", "configs"))
def test_pipelines_and_configs_never_reach_jax_or_vidgen(name):
    top = {target.split(".")[0] for target in reach(name, set())}
    assert not top & (JAX | {"vidgen"}), f"{name}: a loader worker would take GPU memory"


@pytest.mark.parametrize("name", under("configs"))
def test_configs_import_only_ml_collections_and_each_other(name):
    top = {target.split(".")[0] for target in imports(name)}
    assert top <= {"ml_collections", "configs", "re", "types", "dataclasses"}


@pytest.mark.parametrize("name", under("vidgen.models"))
def test_models_never_see_config_optimizer_or_mesh(name):
    """What a model may say of places stands in one file."""
    assert not {"ml_collections", "optax", "orbax"} & {t.split(".")[0] for t in imports(name)}
    assert name == "vidgen.models.places" or "jax.sharding" not in imports(name)


@pytest.mark.parametrize("name", under("vidgen.training"))
def test_training_takes_trees_and_not_models(name):
    assert ours(name) & set(under("vidgen.models.")) <= {
        "vidgen.models.compat",
        "vidgen.models.places",
    }


@pytest.mark.parametrize("package", FOLDERS)
def test_every_folder_has_its_place(package):
    folders = {path.parent.name for path in (ROOT / package).glob("*/*.py")}
    assert folders == set(FOLDERS[package])


@pytest.mark.parametrize(
    "name", [name for name in modules() if not is_command(name) and name.count(".") > 1]
)
def test_imports_between_folders_point_one_way(name):
    package, folder = name.split(".")[:2]
    allowed = {folder, *FOLDERS[package][folder]}
    used = {target.split(".")[1] for target in ours(name) if target.split(".")[0] == package}
    assert used <= allowed, f"{name} reaches up to {sorted(used - allowed)}"


@pytest.mark.parametrize("name", [name for name in modules() if not is_command(name)])
def test_no_library_module_imports_a_command(name):
    assert not [target for target in imports(name) if is_command(target)]


def test_no_import_goes_in_a_circle():
    def visit(name, path):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for target in sorted(ours(name)):
                visit(target, [*path, name])
            done.add(name)

    done = set()
    for name in modules():
        visit(name, [])

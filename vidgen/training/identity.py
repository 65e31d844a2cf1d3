"""What decides the numbers of a run, as names and values that two starts can be compared by."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Iterable, Mapping
from typing import Any

from flax import traverse_util

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "ml_dtypes")
CODE = ("vidgen/models", "vidgen/diffusion", "vidgen/tasks", "vidgen/training", "vidgen/weights")
CODE += ("data_pipelines/loading", "data_pipelines/shards", "data_pipelines/media")
# Of the environment: what changes numbers, or how processes talk to each other.
ENVIRONMENT = ("XLA_FLAGS", "JAX_", "NCCL_", "NVIDIA_TF32_OVERRIDE", "LIBTPU_INIT_ARGS")
# Of one process, or of one machine.
LOCAL = ("JAX_PROCESS", "JAX_LOCAL", "JAX_COORDINATOR", "JAX_COMPILATION_CACHE_DIR", "NCCL_DEBUG")
LOCAL += ("NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "NCCL_TOPO", "JAX_PARTITION_INDEX")

Difference = tuple[str, Any, Any]  # name, value there, value here; ... is absent


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a run is known by.

    Args:
        config: Resolved and nested, as JSON.
        fingerprint: The loader's, or None for a run without data.
        contents: Fingerprints of frozen weights, by name.
        versions: Of Python, of packages, and a digest of our own code as "code".
    """

    config: Mapping[str, Any]
    fingerprint: str | None
    contents: Mapping[str, str] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, config: Any, fingerprint: str | None) -> "Identity":
        """Of a run that is about to start here."""
        config = getattr(config, "to_dict", lambda: config)()
        return cls(json.loads(json.dumps(config, default=str)), fingerprint, {}, versions())

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> "Identity":
        """From what `dataclasses.asdict` gave; what older versions did not write is empty.

        Raises:
            KeyError, TypeError, ValueError: If it is something else.
        """
        traverse_util.flatten_dict(data["config"], sep=".")
        parts = {name: dict(data.get(name, {})) for name in ("contents", "versions")}
        return cls(data["config"], data["fingerprint"], **parts)

    def flat(self) -> dict[str, Any]:
        """All of it by name: config fields by theirs, `fingerprint`, `weights.*`, `versions.*`."""
        flat = traverse_util.flatten_dict(self.config, sep=".")
        flat["fingerprint"] = self.fingerprint
        flat |= {f"weights.{name}": value for name, value in self.contents.items()}
        return flat | {f"versions.{name}": value for name, value in self.versions.items()}

    def differences(self, here: "Identity") -> list[Difference]:
        """What differs between this, which is there, and another.

        Weights and versions that only one of them knows are not compared, and a config field of a
        later version that is left empty changes nothing.
        """
        old, new = self.flat(), here.flat()
        found = []
        for name in sorted(old.keys() | new.keys()):
            if name not in old and not new[name]:
                continue
            if name.startswith(("weights.", "versions.")) and not (name in old and name in new):
                continue
            if old.get(name, ...) != new.get(name, ...):
                found.append((name, old.get(name, ...), new.get(name, ...)))
        return found


def covers(names: Iterable[str], field: str) -> bool:
    """Whether a field is among names, or under one of them."""
    return any(field == name or field.startswith(name + ".") for name in names)


@functools.cache
def versions() -> dict[str, str]:
    """Python, the packages that numbers go through, and our code."""
    found = {"python": ".".join(platform.python_version_tuple()[:2]), "code": code_digest()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, str]:
    """Variables of the environment that all processes of a run must share, by name."""
    return {
        f"environment.{name}": " ".join(word for word in value.split() if "dump" not in word)
        for name, value in sorted(os.environ.items())
        if name.startswith(ENVIRONMENT) and not name.startswith(LOCAL)
    }


def code_digest() -> str:
    """Names our code that numbers go through."""
    digest = hashlib.sha256()
    root = pathlib.Path(__file__).resolve().parents[2]
    for package in CODE:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]

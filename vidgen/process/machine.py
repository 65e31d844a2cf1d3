"""What a result was measured on: processor, memory, devices and versions."""

import importlib.metadata
import os
import pathlib
import platform
from typing import Any

import jax

_PACKAGES = ("vidgen", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av")


def describe() -> dict[str, Any]:
    """Returns names, counts and versions, ready for JSON; what cannot be found is left out."""
    kinds = [device.device_kind for device in jax.devices()]
    found = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_gib": _memory_gib(),
        "devices": None if jax.default_backend() == "cpu" else kinds,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {name: value for name, value in found.items() if value} | {"versions": versions}


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None

"""Reads a compiled program's text (HLO): what its devices send each other, and attention kernels.

Loops are counted as often as they run. A collective of several arrays is one here.
"""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
OTHER = "other"  # groups of devices that no set of mesh axes gives
_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_ATTENTION = re.compile(r'custom_call_target="__cudnn\$fmha(\w*)"')
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?(%?[\w.\-]+) .*\{$")
_CALLED = re.compile(
    r"(?:calls|body|condition|to_apply|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_GROUPS = re.compile(
    r"replica_groups=(mesh\[[^\]]*\](?:, *device_ids=\([\d,]*\))? *\{[^}]*\}"
    r"|\[[\d,]*\]<=\[[\d,]*\](?:T\([\d,]*\))?|\{(?:\{[\d,]*\},?)*\})"
)
_PAIRS = re.compile(r"source_target_pairs=(\{(?:\{[\d,]*\},?)*\})")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: result = opcode(operands), attributes."""

    shape: str
    opcode: str
    rest: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """What one device sends or receives by one instruction, over the whole program.

    Args:
        kind: One of KINDS.
        axis: Mesh axes that it works along, joined by "+", or OTHER.
        count: How often it runs.
        bytes: Of the larger side, for all times together: what a gather gives, what a reduction
            takes.
        made_by: The operation in JAX's terms.
    """

    kind: str
    axis: str
    count: int
    bytes: int
    made_by: str


def collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """All collectives of a compiled program, the largest first.

    Args:
        text: Of the compiled program.
        mesh: Size of each axis by name; devices are numbered along the last one first.
    """
    found = []
    computations, counts = _read(text)
    for name, instructions in computations.items():
        for line in instructions:
            kind = line.opcode.removesuffix("-start")
            if kind not in KINDS or not counts[name]:
                continue
            groups, count = _groups(line.rest), counts[name]
            if max(map(len, groups), default=2) == 1:
                continue
            size = _moved(kind, line, groups)
            found.append(Collective(kind, _axis(groups, mesh), count, size * count, _op(line.rest)))
    return sorted(found, key=lambda c: -c.bytes)


def attention_kernels(text: str) -> dict[str, int]:
    """How many cuDNN attention calls stand in a program, `forward` and `backward`."""
    found = collections.Counter(
        "backward" if "Backward" in name else "forward" for name in _ATTENTION.findall(text)
    )
    return {kind: found[kind] for kind in ("forward", "backward")}


def shape_bytes(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple."""
    total = 0
    for dtype, dims in _ARRAY.findall(shape):
        size = math.prod(int(n) for n in dims.split(",") if n)
        bits = _BITS.get(dtype) or int(re.search(r"\d+|$", dtype).group() or 0)
        total += size * bits // 8
    return total


def _read(text: str) -> tuple[dict[str, list[Instruction]], dict[str, int]]:
    """The instructions of each computation, and how often each runs."""
    computations: dict[str, list[Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = head[2].lstrip("%")
            entry = current if head[1] else entry
            computations[current] = []
        elif current and " = " in line:
            computations[current].append(_instruction(line))
    counts = collections.Counter({entry: 1})
    # callees stand above their callers
    for name in reversed(computations):
        for line in computations[name]:
            trips = _trips(line, computations) if line.opcode == "while" else 1
            for callee in _callees(line):
                counts[callee] += counts[name] * trips
    return computations, counts


def _instruction(line: str) -> Instruction:
    value = line.split(" = ", 1)[1]
    shape = next(_parts(value)) if value.startswith("(") else value.split(" ", 1)[0]
    opcode, _, rest = value[len(shape) :].strip().partition("(")
    return Instruction(shape, opcode, rest)


def _parts(text: str) -> Iterator[str]:
    """What stands in the first parentheses of a text: first all of it, then its parts."""
    depth, start, parts = 0, 1, []
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 or (depth == 1 and letter == ","):
            parts.append(text[start:at].strip())
            start = at + 1
        if depth == 0:
            yield text[: at + 1]
            break
    yield from filter(None, parts)


def _callees(line: Instruction) -> list[str]:
    if line.opcode.endswith(("-done", "-update")):
        return []  # they name what their -start has run
    names = ",".join(_CALLED.findall(line.rest)).strip("{}")
    return [name.strip(" {}").lstrip("%") for name in names.split(",") if name.strip(" {}")]


def _trips(line: Instruction, computations) -> int:
    if found := _TRIPS.search(line.rest):
        return int(found[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line.rest)
    constants = [
        int(x.rest.partition(")")[0])
        for x in computations.get(condition[1] if condition else "", ())
        if x.opcode == "constant" and x.rest.partition(")")[0].isdigit()
    ]
    return constants[0] if len(constants) == 1 else 1


def _moved(kind: str, line: Instruction, groups) -> int:
    """Bytes of the larger side of a collective."""
    shape, is_reducing = line.shape, kind == "reduce-scatter"
    parts = list(_parts(shape))[1:] if shape.startswith("(") else []
    # the result of a -start holds operands and results
    holds_both = parts and (parts[0].startswith("(") or kind != "all-reduce")
    if line.opcode.endswith("-start") and holds_both:
        return shape_bytes(parts[0 if is_reducing else 1])
    return shape_bytes(shape) * (len(groups[0]) if is_reducing and groups else 1)


def _groups(rest: str) -> list[list[int]]:
    """The groups of devices that talk to each other; none where all do, or it is not said."""
    if pairs := _PAIRS.search(rest):
        return _joined(_lists(pairs[1]))
    if not (found := _GROUPS.search(rest)):
        return []
    text = found[1]
    if text.startswith("{"):
        return _lists(text)
    if text.startswith("mesh"):
        return _mesh_groups(text)
    numbers = [
        [int(n) for n in part.split(",")] for part in re.findall(r"[\[(]([\d,]+)[\])]", text)
    ]
    ids = np.arange(math.prod(numbers[1])).reshape(numbers[1])
    ids = ids.transpose(numbers[2]) if len(numbers) == 3 else ids
    return ids.reshape(numbers[0]).tolist()


def _mesh_groups(text: str) -> list[list[int]]:
    axes = {name: int(size) for name, size in re.findall(r"'([\w.]+)'=(\d+)", text)}
    along = re.search(r"\{([^}]*)\}", text)[1]
    for name, before, size in re.findall(r"'([\w.]+)':\((\d+)\)(\d+)", along):  # part of an axis
        after = axes[name] // int(before) // int(size)
        parts = {f"{name} before": int(before), name: int(size), f"{name} after": after}
        whole = {axis: {axis: n} for axis, n in axes.items()} | {name: parts}
        axes = {part: n for axis in whole.values() for part, n in axis.items()}
    groups = _along(axes, re.findall(r"'([\w.]+)'", along))
    if not (order := re.search(r"device_ids=\(([\d,]*)\)", text)):
        return groups
    ids = [int(n) for n in order[1].split(",")]
    return [[ids[i] for i in group] for group in groups]


def _along(mesh: Mapping[str, int], names) -> list[list[int]]:
    """The groups of devices that differ in their places along these axes only."""
    ids = np.arange(math.prod(mesh.values())).reshape(tuple(mesh.values()))
    order = [name for name in mesh if name not in names] + [n for n in mesh if n in names]
    ids = ids.transpose([list(mesh).index(name) for name in order])
    return ids.reshape(-1, math.prod(mesh[name] for name in names)).tolist()


def _axis(groups: list[list[int]], mesh: Mapping[str, int]) -> str:
    names = [name for name, size in mesh.items() if size > 1]
    sets = lambda groups: {frozenset(group) for group in groups}
    for count in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, count):
            if sets(groups) == sets(_along(mesh, chosen)) or (not groups and count == len(names)):
                return "+".join(chosen)
    return OTHER


def _joined(pairs: list[list[int]]) -> list[list[int]]:
    """Connected devices."""
    groups: list[set[int]] = []
    for pair in map(set, pairs):
        touching = [group for group in groups if group & pair]
        groups = [group for group in groups if not group & pair] + [pair.union(*touching)]
    return [sorted(group) for group in groups]


def _lists(text: str) -> list[list[int]]:
    return [[int(n) for n in part.split(",")] for part in re.findall(r"\{([\d,]+)\}", text)]


def _op(rest: str) -> str:
    found = re.search(r'op_name="([^"]*)"', rest)
    return found[1] if found else ""

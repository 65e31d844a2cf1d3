"""Compiles the programs of the published recipe for H100s, on a machine without one.

    python -m tests.compile_h100 [--all] [--only=train/gradient] [--json=FILE]

Says what each program needs of a device's memory, what the devices send each other, and which
attention kernels it has. Without --all: one bucket of each kind, in minutes. With it: every bucket
of the three stages, on one device and on eight, which takes hours; what stands in FILE already,
and would be compiled from the same text by the same compiler, is taken from there.

The compiler is that of JAX's plugin for CUDA, in an environment that is made once (--venv). Kernels
are not tuned there, so the programs tell nothing of time.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Sequence

from tests import h100_env, h100_hlo

# Without --all: programs of the bucket 144p/51 of stage 1, and the numbers of devices.
_FEW = {("train", "gradient"): (1, 8), ("encode", "encode"): (1,), ("sample", "finish"): (1,)}
_FEW_BUCKET = ("144p", 51)
_DEVICES = {"train": (1, 8), "encode": (1, 8), "sample": (1,)}
_LARGEST = 8  # collectives of a row
_MEMORY = 0.95 * 80e9  # bytes of an H100 that a program may take
_SMALL = 32e6  # bytes of all-reduces that need no reason: of norms, and of small parameters
# What a row takes from that of an equal program: all that the compiler found.
_FOUND = ("peak_bytes", "argument_bytes", "temp_bytes", "output_bytes", "alias_bytes")
_FOUND += ("collectives", "largest", "attention", "compile_seconds")


@dataclasses.dataclass
class Row:
    """What is known of one program; bytes and FLOPs are those of one device.

    Args:
        command, program: Who runs it, and its name.
        resolution, frames, clips: Its bucket; clips are those of all devices.
        stages: Of the recipe, that have it.
        devices: How many it is compiled for.
        peak_bytes: Arguments, temporaries and outputs, less what outputs share with arguments.
        collectives: Bytes by kind and mesh axes, `h100_hlo.Collective`.
        sent: What was expected of them, bytes by kind.
        largest: The largest collectives.
        attention: Calls of cuDNN's kernels in the text of the program.
        flops: By `vidgen.models.flops`, without what is computed again.
        digest: Of what is compiled: the lowered program and the versions.
        error: Why it could not be compiled.
    """

    command: str
    program: str
    resolution: str
    frames: int
    clips: int
    stages: list[int]
    devices: int
    flops: float
    peak_bytes: int = 0
    argument_bytes: int = 0
    temp_bytes: int = 0
    output_bytes: int = 0
    alias_bytes: int = 0
    collectives: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    sent: dict[str, int] = dataclasses.field(default_factory=dict)
    largest: list[dict] = dataclasses.field(default_factory=list)
    attention: dict[str, int] = dataclasses.field(default_factory=dict)
    lower_seconds: float = 0.0
    compile_seconds: float = 0.0
    digest: str = ""
    error: str = ""

    @property
    def name(self) -> str:
        """As "train/gradient/144p/51x8", which --only is looked for in."""
        return f"{self.command}/{self.program}/{self.resolution}/{self.frames}x{self.devices}"

    @property
    def problems(self) -> list[str]:
        """What a run would not survive, or should not pay for."""
        if self.error:
            return [self.error.splitlines()[0]]
        found = []
        if self.peak_bytes > _MEMORY:
            found.append(f"takes {self.peak_bytes / 1e9:.1f} GB, {_MEMORY / 1e9:.0f} are there")
        for kind in sorted(self.collectives.keys() | self.sent.keys()):
            size, want = sum(self.collectives.get(kind, {}).values()), self.sent.get(kind, 0)
            if abs(size - want) > max(_SMALL * (kind == "all-reduce"), 0.05 * want):
                found.append(f"{kind} of {size / 1e9:.2f} GB, not {want / 1e9:.2f}")
        return found


class Known:
    """Rows of a file, by what was compiled for them; what is found goes there after each program.

    Args:
        path: The file, or None to keep nothing.
    """

    def __init__(self, path: pathlib.Path | None):
        self._path, self._by_place, self._by_digest = path, {}, {}
        for row in self._read(path) if path and path.exists() else ():
            self._learn(row)

    @staticmethod
    def _read(path) -> list[Row]:
        try:
            return [Row(**fields) for fields in json.loads(path.read_text())]
        except (TypeError, ValueError) as error:
            raise SystemExit(f"--json={path} is no record of this command: {error}.") from error

    def _learn(self, row: Row) -> None:
        self._by_place[row.name, row.clips] = row
        if not row.error:
            self._by_digest[row.digest] = row

    def get(self, digest: str) -> Row | None:
        """The row of a program that was compiled before."""
        return self._by_digest.get(digest)

    def rows(self) -> list[Row]:
        """All rows."""
        return list(self._by_place.values())

    def add(self, row: Row) -> None:
        """Takes a row, and writes the file."""
        self._learn(row)
        self._write()

    def keep(self, rows: list[Row]) -> None:
        """Leaves only these in the file."""
        self._by_place = {(row.name, row.clips): row for row in rows}
        self._write()

    def _write(self) -> None:
        from vidgen.weights import digests

        if self._path:
            text = json.dumps([dataclasses.asdict(r) for r in self.rows()], indent=1)
            digests.write_atomically(self._path, f"{text}\n".encode())


def rows(is_all: bool, only: str, counts: Sequence[int], known: Known) -> Iterator[Row]:
    """Compiles what is asked for, and yields a row each, the small numbers of devices first."""
    import jax  # only the environment of the compiler has to have these

    from tests import h100_programs, h100_target

    stages = h100_programs.STAGES if is_all else h100_programs.STAGES[:1]
    with h100_target.chosen():
        for devices in counts:
            models = {stage: h100_programs.Models(stage, devices) for stage in stages}
            for command in (name for name, on in _DEVICES.items() if devices in on):
                mesh = h100_target.make_mesh(models[stages[0]].mesh_shape(command))
                for bucket, found in _buckets(models, is_all, command == "train").items():
                    make = h100_programs.COMMANDS[command]
                    with jax.set_mesh(mesh):
                        for program in make(models[found[0]], mesh, bucket):
                            row = _row(program, found, devices)
                            few = _FEW.get((command, program.name), ())
                            if (is_all or devices in few) and only in row.name:
                                _compile(row, program, dict(mesh.shape), known)
                                yield row
                    jax.clear_caches()


def _buckets(models, is_all, has_clips) -> dict:
    """The buckets to compile, each with the stages that have it."""
    found: dict = {}
    for stage, of_stage in models.items():
        for bucket in of_stage.shapes():
            if is_all or (bucket.resolution, bucket.num_frames) == _FEW_BUCKET:
                clips = bucket.batch_size if has_clips else None
                found.setdefault(dataclasses.replace(bucket, batch_size=clips), []).append(stage)
    return found


def _row(program, stages, devices) -> Row:
    bucket = program.bucket
    return Row(
        *(program.command, program.name, bucket.resolution, bucket.num_frames),
        *(bucket.batch_size, stages, devices, program.flops / devices),
        sent=program.sent,
    )


def _compile(row: Row, program, mesh, known: Known) -> None:
    """Fills in a row."""
    import jax

    start = time.perf_counter()
    try:
        lowered = program.run.lower(*program.arguments)
        row.lower_seconds = time.perf_counter() - start
        # but for addresses in this process
        text = re.sub(r'backend_config = "\d+"', "", lowered.as_text())
        source = f"{jax.__version__} {mesh} {text}"
        row.digest = hashlib.sha256(source.encode()).hexdigest()[:16]
        if before := known.get(row.digest):
            for name in _FOUND:
                setattr(row, name, getattr(before, name))
            return
        compiled = lowered.compile()
    except (ValueError, RuntimeError) as error:  # a row of its own, and the rest goes on
        row.error = f"{type(error).__name__}: {error}"
        return
    row.compile_seconds = time.perf_counter() - start - row.lower_seconds
    memory = compiled.memory_analysis()
    for name in ("argument", "temp", "output", "alias"):
        setattr(row, f"{name}_bytes", getattr(memory, f"{name}_size_in_bytes"))
    row.peak_bytes = row.argument_bytes + row.temp_bytes + row.output_bytes - row.alias_bytes
    text = compiled.as_text()
    row.attention = h100_hlo.attention_kernels(text)
    found = h100_hlo.collectives(text, mesh)
    row.largest = [dataclasses.asdict(c) for c in found[:_LARGEST]]
    for c in found:
        by_axis = row.collectives.setdefault(c.kind, {})
        by_axis[c.axis] = by_axis.get(c.axis, 0) + c.bytes


HEADER = (
    f"{'program':<15} {'bucket':>9} {'clips':>5} {'GPUs':>4} {'peak GB':>8} {'args':>6} "
    f"{'temp':>6} {'TFLOP':>7} {'cuDNN':>6} {'s':>5}  collectives, GB"
)


def line(row: Row) -> str:
    """A row of the table; numbers are those of one device."""
    gb = lambda size: f"{size / 1e9:.2f}"
    sent = [
        f"{kind}({axis}) {gb(size)}"
        for kind, by_axis in sorted(row.collectives.items())
        for axis, size in sorted(by_axis.items())
    ]
    kernels = "+".join(map(str, row.attention.values())) if any(row.attention.values()) else "none"
    bucket = f"{row.resolution}/{row.frames}"
    return (
        f"{f'{row.command} {row.program}':<15.15} {bucket:>9} {row.clips:>5} {row.devices:>4} "
        f"{gb(row.peak_bytes):>8} {gb(row.argument_bytes):>6} {gb(row.temp_bytes):>6} "
        f"{row.flops / 1e12:>7.1f} {kernels:>6} {row.lower_seconds + row.compile_seconds:>5.0f}  "
        f"{', '.join(sent) or '-'}{''.join(f'; PROBLEM: {p[:100]}' for p in row.problems)}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every bucket of the three stages")
    parser.add_argument(
        "--only", default="", help='what to compile, as in "train/gradient/144p/51x8"'
    )
    parser.add_argument("--devices", type=int, choices=(1, 8), help="by default both")
    parser.add_argument("--json", type=pathlib.Path, help="file for all that is found")
    parser.add_argument("--venv", type=pathlib.Path, default=h100_env.ROOT / ".venv-h100")
    args = parser.parse_args()
    if not h100_env.is_inside(args.venv):
        h100_env.run_inside(args.venv.absolute(), "tests.compile_h100", sys.argv[1:])
    print(HEADER)
    known, found = Known(args.json), []
    counts = (args.devices,) if args.devices else (1, 8)
    for row in rows(args.all, args.only, counts, known):
        print(line(row), flush=True)
        found.append(row)
        known.add(row)  # after each: hours would be lost
    if args.all and not args.only and not args.devices:
        known.keep(found)
    failed = sum(bool(row.problems) for row in found)
    print(f"{len(found)} programs, {failed} of them with problems")
    return 1 if failed or not found else 0


if __name__ == "__main__":
    sys.exit(main())

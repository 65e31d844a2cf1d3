"""What was measured of clips, and whether it serves again: nothing is decoded twice.

A clip is known by the content of its file and the times in it. What was measured of it depends on
that and on how it was measured, and on nothing else: not on its caption or id, the path of its
file, the rules, its neighbours in the table, or a limit that it did not come near.

Part files (`parts`) hold ledger rows with three more columns:

    place   the file as it was found without reading it: path, bytes and time of its last change
    asked   "[start, end]" of the clip table
    how     JSON of what `plan.measurement` says; "text" marks the caption that models have seen
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from data_pipelines.sources import clips
from data_pipelines.stages import examine, ledger, rules, scene

MORE = [("place", pa.string()), ("asked", pa.string()), ("how", pa.string())]
SCHEMA = pa.schema([*ledger.SCHEMA, *MORE])
_MODELS = ("text_share", "aesthetic", "match", "caption")  # columns that models fill in
# Refusals that another limit would not change.
_CERTAIN = ("broken header", "damaged", "empty", "missing frames", "no times", "no video")
_CERTAIN += ("too short", "unknown codec", "unknown format")
_SIZES = ("bytes", "first_frame", "num_frames", "height", "width")
_OF_PROCESS = ("deadline_seconds", "memory_bytes")  # limits that say nothing of what passed them


def file_name(run: int) -> str:
    """Returns the file, in the folder of a data set, of what a run has measured."""
    return f"measured/{run:04d}.parquet"


def asked(clip: clips.Clip) -> str:
    """Returns the column of that name."""
    return json.dumps([clip.start, clip.end])


def write(path: pathlib.Path, rows: Sequence[dict] | pa.Table):
    """Writes rows of SCHEMA; the file is absent or complete."""
    ledger.write(path, rows if isinstance(rows, pa.Table) else ledger.table(rows, SCHEMA))


class Store:
    """Clips that were measured, by number: those of the first file first. Later ones win.

    `file_of` has the number of each one's file.

    Args:
        paths: Part files.
        wanted: What `plan.measurement` returned: what was measured otherwise is not found.
        early: The rules that keep clips from being shown to models.

    Raises:
        ValueError: If a file is not one of these.
    """

    def __init__(self, paths: Iterable[pathlib.Path], wanted: dict, early: Sequence[rules.Rule]):
        tables = [_read(path) for path in paths]
        self.rows = pa.concat_tables([SCHEMA.empty_table(), *tables]).combine_chunks()
        self._wanted, self._early = wanted, early
        parents = self.rows["parent"]
        is_first = pc.equal(self.rows["id"], pc.binary_join_element_wise(parents, "#000", ""))
        self._first = np.flatnonzero(pc.fill_null(is_first, True).to_numpy())
        self._count = np.diff(np.append(self._first, len(self.rows)))
        ends = np.cumsum(list(map(len, tables)))
        self.file_of = np.searchsorted(ends, self._first, side="right")  # of each clip
        decode = functools.cache(lambda how: json.loads(how) if how else None)
        self._hows = [decode(how) for how in self.rows["how"].to_pylist()]
        good = [number for number in range(len(self)) if self._hows[self._first[number]]]
        good = [number for number in good if self._serves[number]]
        heads = ledger.take(self.rows.select(["place", "asked", "sha256"]), self._first[good])
        places, times, sums = (heads[name].to_pylist() for name in ("place", "asked", "sha256"))
        self._by_place = dict(zip(zip(places, times, strict=True), good, strict=True))
        self._by_content = dict(zip(zip(sums, times, strict=True), good, strict=True))

    def __len__(self) -> int:
        return len(self._first)

    def at(self, place: str, clip: clips.Clip) -> int | None:
        """Returns the number of a clip whose file lies where and as it was, if it is known."""
        return self._by_place.get((place, asked(clip)))

    def of(self, sha256: str, clip: clips.Clip) -> int | None:
        """Returns the number of a clip with this content, if it is known."""
        return self._by_content.get((sha256, asked(clip)))

    def take(
        self, numbers: Sequence[int], table: Sequence[clips.Clip]
    ) -> tuple[pa.Table, set[int]]:
        """Returns what is known of clips, as if those of a clip table had been measured.

        Args:
            numbers: Of the known clips.
            table: A clip for each.

        Returns:
            Rows of SCHEMA, and the places in the table of clips that models have yet to see.
        """
        index, within = self._rows_of(numbers)
        owners = np.repeat(np.arange(len(table)), self._count[list(numbers)]).tolist()
        rows = _named(ledger.take(self.rows, index), [table[i] for i in owners], within)
        unasked = {*scene.NAMES} - {*self._wanted["scores"]}
        for name in sorted(unasked):
            rows = _with(rows, name, pa.nulls(len(rows), SCHEMA.field(name).type))
        is_shown, lacking = np.zeros(len(rows), bool), set()
        if self._wanted["models"]:
            verdicts = rules.apply(self._early, rows.select(ledger.SCHEMA.names))
            is_shown = ~rows["status"].is_valid().to_numpy()
            is_shown &= np.array([verdict is None for verdict in verdicts], bool)
            has_caption = rows["caption"].is_valid().to_pylist()
            for row in np.flatnonzero(is_shown):
                how, text = self._hows[index[row]], table[owners[row]].text
                is_told = has_caption[row] or not self._wanted["writes"]
                if not (is_told and _has_seen(how, self._wanted, text)):
                    lacking.add(owners[row])
        for name in _MODELS:
            null = pa.scalar(None, SCHEMA.field(name).type)
            rows = _with(rows, name, pc.if_else(pa.array(is_shown), rows[name], null))
        return rows, lacking

    def raw(self, numbers: Sequence[int]) -> pa.Table:
        """Returns what was measured of known clips, as it was written."""
        rows = ledger.take(self.rows, self._rows_of(numbers)[0])
        return rows.filter(rows["how"].is_valid())

    def _rows_of(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(rows of clips one after the other, the place of each within its clip)."""
        numbers = np.asarray(numbers, np.int64)
        counts = self._count[numbers]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(self._first[numbers], counts) + within, within

    @functools.cached_property
    def _serves(self) -> list[bool]:
        """Tells of each clip whether it was measured as is wanted, but for models."""
        last = self._first + self._count - 1
        names = (*_SIZES, "kind", "rule", "asked")
        facts = ledger.take(self.rows.select(names), last).to_pylist()
        firsts = (self._hows[row] for row in self._first)
        return [
            how is not None and _serves(how, self._wanted, fact)
            for how, fact in zip(firsts, facts, strict=True)
        ]


def _serves(how: dict, wanted: dict, fact: dict) -> bool:
    """Tells whether a clip's measurement is the one that is wanted; `fact` is of its last row."""
    if how["version"] != wanted["version"]:
        return False
    before, now = how["limits"], wanted["limits"]
    if fact["rule"] not in (None, examine.SCENE_TOO_SHORT):
        return before == now or fact["rule"] in _CERTAIN
    is_cut_so = fact["kind"] == "image" or how["cuts"] == wanted["cuts"]
    if not is_cut_so or not {*how["scores"]} >= {*wanted["scores"]}:
        return False
    lower = {name for name, value in now.items() if value < before.get(name, value)}
    frames, pixels = fact["first_frame"] + fact["num_frames"], fact["height"] * fact["width"]
    found = {"max_bytes": fact["bytes"], "max_frames": frames, "max_pixels": pixels}
    found |= {"max_video_pixels": frames * pixels, **dict.fromkeys(_OF_PROCESS, 0)}
    cuts = how["cuts"] or {"max_seconds": None, "split_long": True}
    if json.loads(fact["asked"])[1] or (cuts["max_seconds"] and not cuts["split_long"]):
        del found["max_frames"], found["max_video_pixels"]  # the file may go on after the last row
    # what rows do not tell has to be measured under the lower limit
    return all(name in found and found[name] <= now[name] for name in lower)


def _has_seen(how: dict, wanted: dict, text: str | None) -> bool:
    """Tells whether the models that are asked have seen a clip, with this caption if they read."""
    return how["models"] == wanted["models"] and how["text"] == mark(wanted, text)


def mark(wanted: dict, text: str | None) -> str:
    """Names the caption that models see with a clip; empty: they see none."""
    return hashlib.sha256((text or "").encode(errors="replace")).hexdigest()[:16] * wanted["reads"]


def _named(rows: pa.Table, owners: Sequence[clips.Clip], within: np.ndarray) -> pa.Table:
    """Rows with what the table says of their clips; `within` counts a clip's own rows."""
    is_scene = rows["parent"].is_valid().to_pylist()
    columns = {
        "id": [
            clip.id + f"#{number:03d}" * scene
            for clip, number, scene in zip(owners, within.tolist(), is_scene, strict=True)
        ],
        "parent": [c.id if s else None for c, s in zip(owners, is_scene, strict=True)],
        "given": [examine.to_json(clip.given) for clip in owners],
    }
    columns |= {n: [getattr(clip, n) for clip in owners] for n in ("source", "file", "text")}
    for name, values in columns.items():
        rows = _with(rows, name, ledger.column(name, values))
    return rows


def _read(path: pathlib.Path) -> pa.Table:
    try:
        found = pyarrow.parquet.ParquetFile(path).read()
        return found.select(SCHEMA.names).cast(SCHEMA)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} holds no measurements of this version ({error}): delete it, and the clips in "
            "it are examined again."
        ) from error


def _with(rows: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), SCHEMA.field(name), column)

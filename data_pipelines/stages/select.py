"""From what was measured to a verdict: filter rules, captions, rules on captions, duplicates.

Runs over the whole ledger, in one process, and looks at nothing else: the same rows give the same
verdicts. A clip's verdict is the first thing that speaks against it. Duplicates come last, so that
a clip is never left out for one that is left out itself.

Rules and captions see a block of rows after the other; of all rows at once there are only columns
of Arrow and NumPy, as ten million rows as Python objects do not fit into the memory of one machine.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tqdm

from data_pipelines.stages import caption_cleaning, dedup, ledger, rules, text

NO_CAPTION, DUPLICATE, NEAR_DUPLICATE = "no caption", "duplicate", "near duplicate"
_FILLED = ("caption", "duplicate_of", "status", "rule", "message")  # columns


def select(rows: pa.Table, plain: dict, *, quiet: bool = False) -> pa.Table:
    """Returns the rows with `caption`, `status`, `rule`, `message` and `duplicate_of` filled in.

    Args:
        rows: A ledger after all parts were examined.
        plain: The config as plain values.
        quiet: No progress bar.
    """
    parsed = rules.parse(plain["rules"])
    late = [rule for rule in parsed if rule.is_late()]
    early = [rule for rule in parsed if not rule.is_late()]
    types, filled = rules.given_types(parsed, rows), []
    with tqdm.tqdm(
        total=len(rows), desc="captions", unit="clip", disable=quiet, leave=False
    ) as bar:
        for block in ledger.blocks(rows):
            choice = _Choice(block, types)
            # a clip that these leave out was not shown to models, and may have no caption for that
            choice.apply(early)
            choice.caption(plain["captions"])
            choice.apply(late)
            filled.append(choice.table().select(_FILLED))
            bar.update(len(block))
    rows = _with(rows, filled)
    kept = np.flatnonzero(pc.equal(rows["status"], ledger.KEPT).to_numpy())
    exact, near = _duplicates(rows, kept, plain["dedup"])
    if not exact and not near:
        return rows
    ids, copies = rows["id"], {}
    for found, rule, says in (
        (exact, DUPLICATE, "the same file and frames as {}."),
        (near, NEAR_DUPLICATE, "looks like {}."),
    ):
        for row, other in found.items():
            while other in exact or other in near:  # what it equals may look like a third
                other = exact.get(other, near.get(other))
            best = ids[int(kept[other])].as_py()
            copies[int(kept[row])] = rule, says.format(best), best
    return _with(rows, _without(rows, copies))


def _with(rows: pa.Table, filled: list[pa.Table]) -> pa.Table:
    """Returns rows with the columns of _FILLED, of which there are some rows after the others."""
    if not filled:
        return rows
    filled = pa.concat_tables(filled)
    for name in _FILLED:
        place = ledger.SCHEMA.names.index(name)
        rows = rows.set_column(place, ledger.SCHEMA.field(name), filled[name])
    return rows


def _without(rows: pa.Table, copies: dict[int, tuple[str, str, str]]) -> list[pa.Table]:
    """The columns of _FILLED, block by block, where these rows are left out."""
    numbers, filled, start = np.sort(np.fromiter(copies, np.int64, len(copies))), [], 0
    for block in ledger.blocks(rows):
        low, high = np.searchsorted(numbers, [start, start + len(block)])
        choice = _Choice(block, {})
        for row in numbers[low:high].tolist():
            rule, message, best = copies[row]
            choice.leave_out(row - start, rule, message)
            choice.duplicate_of[row - start] = best
        filled.append(choice.table().select(_FILLED))
        start += len(block)
    return filled


class _Choice:
    """Columns of a block of rows that are being filled in, as lists."""

    def __init__(self, rows: pa.Table, types: dict[str, pa.DataType]):
        self.rows, self.types = rows, types
        names = ("id", "text", "caption", "rule", "message", "duplicate_of")
        self.ids, self.texts, self.captions, self.rules, self.messages, self.duplicate_of = (
            rows[name].to_pylist() for name in names
        )

    def leave_out(self, row: int, rule: str, message: str):
        if self.rules[row] is None:
            self.rules[row], self.messages[row], self.captions[row] = rule, message, None

    def apply(self, parsed: list[rules.Rule]):
        for row, verdict in enumerate(rules.apply(parsed, self.table(), self.types)):
            if verdict is not None:
                self.leave_out(row, *verdict)

    def caption(self, how: dict):
        """Makes the captions: what an endpoint gave comes before what the source gave."""
        scores = [self.rows[name].to_pylist() for name in (*text.SCORE_NAMES, "camera")]
        for row in [row for row, rule in enumerate(self.rules) if rule is None]:
            *told, camera = (column[row] for column in scores)
            given = self.captions[row] or (self.texts[row] or "").strip()
            told = dict(zip(text.SCORE_NAMES, told, strict=True))
            for verdict in _caption(given, self.ids[row], told, camera, how):
                if isinstance(verdict, tuple):
                    reason = self.messages[row] or verdict[1]  # why the endpoint gave none
                    self.leave_out(row, verdict[0], reason)
                else:
                    self.captions[row], self.messages[row] = verdict, None

    def table(self) -> pa.Table:
        status = [ledger.KEPT if rule is None else ledger.LEFT_OUT for rule in self.rules]
        for name, values in (
            *(("caption", self.captions), ("status", status), ("rule", self.rules)),
            *(("message", self.messages), ("duplicate_of", self.duplicate_of)),
        ):
            column = pa.array(values, pa.string())
            self.rows = self.rows.set_column(
                ledger.SCHEMA.names.index(name), ledger.SCHEMA.field(name), column
            )
        return self.rows


def _caption(caption: str, id: str, scores: dict, camera: str | None, how: dict) -> Iterator:
    """Yields one caption, or one (rule, message)."""
    if caption and how["drop_links"] and text.has_link(caption):
        yield "link in the caption", f"{caption[:80]!r}"
        return
    if how["strip_prefix"]:
        caption = text.strip_prefix(caption)
    if caption and how["english"] and not text.is_english(caption):
        yield "not English", f"{caption[:80]!r}"
        return
    if how["clean"]:
        caption = caption_cleaning.clean(caption)
    if not caption.strip():
        yield NO_CAPTION, "nothing is left of the text."
        return
    if how["add_camera"]:
        caption = text.add_camera(caption, camera)
    yield text.add_scores(caption, scores, id) if how["add_scores"] else caption


def _duplicates(rows: pa.Table, kept: np.ndarray, how: dict) -> tuple[dict, dict]:
    """Returns {row: row it copies} for exact and for near duplicates, in places of `kept`."""
    exact, near, is_kept = {}, {}, np.zeros(len(rows), bool)
    is_kept[kept] = True
    if how["exact"]:
        exact = _exact(rows, is_kept)
    if how["near"] >= 0:
        is_rest = np.ones(len(kept), bool)
        is_rest[[*exact]] = False
        rest = np.flatnonzero(is_rest)
        is_kept[kept[~is_rest]] = False
        pa.default_memory_pool().release_unused()
        found = _near(rows, is_kept, how["near"])
        near = {int(rest[worse]): int(rest[better]) for worse, better in found.items()}
    return exact, near


def _exact(rows: pa.Table, is_in: np.ndarray) -> dict[int, int]:
    # frames, as the seconds of two rows that mean the same ones may differ in a last digit
    names = ["sha256", "first_frame", "num_frames"]
    facts = rows.select(["id", *names]).filter(pa.array(is_in))
    return dedup.exact([_codes(facts[name]) for name in names], facts["id"])


def _near(rows: pa.Table, is_in: np.ndarray, distance: int) -> dict[int, int]:
    names = ["kind", "num_frames", "fps", "height", "width"]
    facts = rows.select(names).filter(pa.array(is_in))
    pixels = pc.fill_null(rules.column(facts, "pixels"), 0).to_numpy()
    seconds = pc.fill_null(rules.column(facts, "seconds"), 0.0).to_numpy()
    ids, hashes = (rows[name].filter(pa.array(is_in)) for name in ("id", "phash"))
    return dedup.near(hashes, distance, pixels=pixels, seconds=seconds, ids=ids)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """A number for each value of a column, the same for equal ones."""
    if not pa.types.is_string(column.type):
        return pc.fill_null(column.cast(pa.int64()), -(1 << 63)).to_numpy()
    codes = column.dictionary_encode(null_encoding="encode")
    return np.concatenate([np.zeros(0, int), *(chunk.indices.to_numpy() for chunk in codes.chunks)])

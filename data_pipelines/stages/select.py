"""From what was measured to a verdict: filter rules, captions, rules on captions, duplicates.

Runs over the whole ledger at once, in one process, and looks at nothing else: the same rows give
the same verdicts. A clip's verdict is the first thing that speaks against it. Duplicates come last,
so that a clip is never left out for one that is left out itself.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tqdm

from data_pipelines.stages import caption_cleaning, dedup, ledger, rules, text

NO_CAPTION, DUPLICATE, NEAR_DUPLICATE = "no caption", "duplicate", "near duplicate"


def select(rows: pa.Table, plain: dict, *, quiet: bool = False) -> pa.Table:
    """Returns the rows with `caption`, `status`, `rule`, `message` and `duplicate_of` filled in.

    Args:
        rows: A ledger after all parts were examined.
        plain: The config as plain values.
        quiet: No progress bar.
    """
    choice, parsed = _Choice(rows), rules.parse(plain["rules"])
    # a clip that these leave out was not shown to models, and may have no caption for that
    choice.apply([rule for rule in parsed if not rule.is_late()])
    choice.caption(plain["captions"], quiet)
    choice.apply([rule for rule in parsed if rule.is_late()])
    kept = np.flatnonzero([rule is None for rule in choice.rules])
    exact, near = _duplicates(choice.rows.take(pa.array(kept)), plain["dedup"])
    for found, rule, says in (
        (exact, DUPLICATE, "the same file and frames as {}."),
        (near, NEAR_DUPLICATE, "looks like {}."),
    ):
        for row, other in found.items():
            while other in exact or other in near:  # what it equals may look like a third
                other = exact.get(other, near.get(other))
            best = choice.ids[kept[other]]
            choice.leave_out(kept[row], rule, says.format(best))
            choice.duplicate_of[kept[row]] = best
    return choice.table()


class _Choice:
    """Columns that are being filled in, as lists."""

    def __init__(self, rows: pa.Table):
        self.rows = rows
        names = ("id", "text", "caption", "rule", "message", "duplicate_of")
        self.ids, self.texts, self.captions, self.rules, self.messages, self.duplicate_of = (
            rows[name].to_pylist() for name in names
        )

    def leave_out(self, row: int, rule: str, message: str):
        if self.rules[row] is None:
            self.rules[row], self.messages[row], self.captions[row] = rule, message, None

    def apply(self, parsed: list[rules.Rule]):
        for row, verdict in enumerate(rules.apply(parsed, self.table())):
            if verdict is not None:
                self.leave_out(row, *verdict)

    def caption(self, how: dict, quiet: bool):
        """Makes the captions: what an endpoint gave comes before what the source gave."""
        scores = [self.rows[name].to_pylist() for name in (*text.SCORE_NAMES, "camera")]
        numbers = [row for row, rule in enumerate(self.rules) if rule is None]
        for row in tqdm.tqdm(numbers, desc="captions", unit="clip", disable=quiet, leave=False):
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


def _duplicates(kept: pa.Table, how: dict) -> tuple[dict[int, int], dict[int, int]]:
    """Returns {row: row it copies} for exact and for near duplicates, both in rows of `kept`."""
    ids, exact, near = kept["id"].to_pylist(), {}, {}
    if how["exact"]:
        # frames, as the seconds of two rows that mean the same ones may differ in a last digit
        facts = kept.select(["sha256", "first_frame", "num_frames"]).to_pylist()
        exact = dedup.exact([tuple(row.values()) for row in facts], ids)
    if how["near"] >= 0:
        rest = [row for row in range(len(ids)) if row not in exact]
        table = kept.take(pa.array(rest, pa.int64()))
        seconds = pc.fill_null(rules.column(table, "seconds"), 0.0).to_pylist()
        pixels = pc.fill_null(rules.column(table, "pixels"), 0).to_pylist()
        found = dedup.near(
            table["phash"].to_pylist(),
            how["near"],
            pixels=pixels,
            seconds=seconds,
            ids=table["id"].to_pylist(),
        )
        near = {rest[worse]: rest[better] for worse, better in found.items()}
    return exact, near

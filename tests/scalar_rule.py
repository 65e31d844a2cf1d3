"""The rule of buckets for one clip, as in Open-Sora 1.2: `Table.place_all` is held to it."""

import numpy as np

from data_pipelines.loading import buckets, resolutions

SMALL, KIND, SHORT, ZERO, LENGTH, DRAW = range(len(buckets.REASONS))


def place(table: buckets.Table, num_frames, height, width, *, row, epoch, seed):
    """Returns ((resolution, frames, aspect), "") or (None, why not)."""
    base = seed + epoch + row * table.num_buckets
    nearest = SMALL
    for resolution, entries in table.entries.items():
        if height * width < buckets.MIN_PIXEL_SHARE * resolutions.pixels(resolution):
            continue
        chosen, rng, reason = None, None, KIND
        for entry in entries:
            draws = np.random.default_rng(base + entry.ordinal)
            if num_frames == 1 or entry.num_frames == 1:
                if num_frames == entry.num_frames:
                    chosen, rng = entry, draws
                    break
                continue
            if num_frames <= entry.num_frames * table.frame_interval:
                reason = max(reason, SHORT)
            elif entry.consider is not None and draws.random() > entry.consider:
                reason = LENGTH
            else:
                chosen, rng = entry, draws
                break
        if chosen is not None and (chosen.keep == 1 or rng.random() < chosen.keep):
            names = table.aspects[resolution]
            aspect = min(names, key=lambda k: abs(height / width - float(k)))
            return (resolution, chosen.num_frames, aspect), ""
        if chosen is not None:
            reason = DRAW if chosen.keep else ZERO
        nearest = max(nearest, reason)
    return None, buckets.REASONS[nearest]

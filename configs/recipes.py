"""Tables of the published recipes: buckets and frame masks of Open-Sora 1.2 (spec section 7.4)."""

_FRAMES = ("1", "51", "102", "204", "408")
# Cells are keep@clips or keep/consider@clips, see `data_pipelines.loading.buckets`;
# clips are those of one GPU with 80 GB. "0@0" takes no clip, but passes long ones down to smaller
# resolutions.
_BUCKETS = {
    1: """
    144p   1@475    1@51    1/.33@27   1/.1@13   1/.1@6
    256    .4@297   .5@20   .5/.33@10  .5/.1@5   .5/.1@2
    240p   .3@297   .4@20   .4/.33@10  .4/.1@5   .4/.1@2
    360p   .2@141   .15@8   .15/.33@4  .15/.1@2  .15/.1@1
    512    .1@141
    480p   .1@89
    720p   .05@36
    1024   .05@36
    1080p  .1@5
    2048   .1@5
    """,
    2: """
    144p   1@475    1@51    1/.33@27   1/.1@13   1/.1@6
    256    .4@297   .5@20   .5/.33@10  .5/1@5    .5/1@2
    240p   .3@297   .4@20   .4/.33@10  .4/1@5    .4/1@2
    360p   .5@141   .15@8   .3/.5@4    .3/1@2    .5/.5@1
    512    .4@141   .15@8   .2/.4@4    .2/1@2    .4/.5@1
    480p   .5@89    .2@5    .2@2       .1@1
    720p   .1@36    .03@1
    1024   .1@36    .02@1
    1080p  .01@5
    2048   .01@5
    """,
    3: """
    144p   1@475    1@51    1@27       1@13      1@6
    256    1@297    .5@20   .5@10      .5@5      .5/.5@2
    240p   1@297    .5@20   .5@10      .5@5      .5/.4@2
    360p   1@141    .5@8    .5@4       .5@2      .5/.3@1
    512    1@141    .5@8    .5@4       .5@2      .5/.2@1
    480p   1@89     .5@5    .5@3       .5/.5@1   0@0
    720p   .3@36    .2@2    .1@1       0@0
    1024   .3@36    .1@2    .1@1       0@0
    1080p  .1@5
    2048   .05@5
    """,
}
_MASK_NAMES = ("random", "intepolate", "quarter_random", "quarter_head", "quarter_tail")
_MASK_NAMES += ("quarter_head_tail", "image_random", "image_head", "image_tail", "image_head_tail")
_MASKS = {
    1: (0.05, 0.005, 0.005, 0.005, 0.005, 0.005, 0.025, 0.05, 0.025, 0.025),
    2: (0.005, 0.002, 0.007, 0.002, 0.002, 0.002, 0.0, 0.22, 0.005, 0.005),
    3: (0.01, 0.002, 0.002, 0.002, 0.002, 0.002, 0.0, 0.22, 0.005, 0.005),
}


def buckets(table: int, gpus: int) -> dict[str, dict[str, tuple]]:
    """Table K1, K2 or K3, with the clips of all GPUs together."""
    result = {}
    for line in _BUCKETS[table].strip().splitlines():
        resolution, *cells = line.split()
        entries = zip(_FRAMES, cells, strict=False)
        result[resolution] = {frames: _entry(cell, gpus) for frames, cell in entries}
    return result


def _entry(cell: str, gpus: int) -> tuple:
    shares, _, clips = cell.partition("@")
    keep, _, consider = shares.partition("/")
    share = (float(keep), float(consider)) if consider else float(keep)
    return share, int(clips) * gpus or None


def masks(table: int) -> dict[str, float]:
    """Table M1, M2 or M3: how often which frames are given; the rest generates all frames."""
    return dict(zip(_MASK_NAMES, _MASKS[table], strict=True))

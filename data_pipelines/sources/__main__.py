"""Counts the clips of a source, and the rows that cannot be used by reason: a first look at it.

python -m data_pipelines.sources openvid:DIR
"""

import collections

from data_pipelines.process import arguments
from data_pipelines.sources import clips, specs
from data_pipelines.stages.summary import human_seconds


def main(argv: list[str] | None = None):
    parser = arguments.Parser("data_pipelines.sources", specs.__doc__)
    parser.add_argument("source", help="what --source of the pipeline takes")
    args = parser.parse_args(argv)
    with parser.refusing():
        table = specs.read(args.source)
    reasons = collections.Counter(
        clip.given["refused"].partition(":")[0] for clip in table if "refused" in clip.given
    )
    usable = [clip for clip in table if "refused" not in clip.given]
    seconds = sum(clip.end - (clip.start or 0) for clip in usable if clip.end is not None)
    print(f"{args.source}: {len(table):,} rows, {len(usable):,} clips to look at")
    print(f"  without a caption: {sum(clip.text is None for clip in usable):,}")
    if seconds:
        print(f"  cut to times: {human_seconds(seconds)}")
    for reason, count in reasons.most_common():
        first = next(c for c in table if c.given.get("refused", "").startswith(reason + ":"))
        message = first.given["refused"].partition(": ")[2]
        print(f"  {reason}: {count:,} (first, {first.id}: {message})")
    for clip in usable[:3]:
        print(_describe(clip))


def _describe(clip: clips.Clip) -> str:
    """Returns some lines on one clip."""
    facts = {"file": clip.file, "caption": clip.text or "none"}
    if clip.start is not None or clip.end is not None:
        end = "the end" if clip.end is None else f"{clip.end:g} s"
        facts["times"] = f"{clip.start or 0:g} s to {end}"
    if clip.given:
        values = (v if isinstance(v, str) else f"{v:g}" for v in clip.given.values())
        told = zip(clip.given, values, strict=True)
        facts["given"] = "; ".join(f"{name} {value}" for name, value in told)
    lines = [f"\n  {clip.id}", *(f"    {name:<9}{value}" for name, value in facts.items())]
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode()  # names may be no UTF-8


if __name__ == "__main__":
    main()

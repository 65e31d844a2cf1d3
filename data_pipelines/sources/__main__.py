"""Counts the clips of a source, and the rows that cannot be used by reason: a first look at it.

python -m data_pipelines.sources openvid:DIR
"""

import argparse
import collections

import data_pipelines.sources as sources


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="data_pipelines.sources",
        description=sources.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="what --source of the pipeline takes")
    args = parser.parse_args(argv)
    try:
        table = sources.read(args.source)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    reasons = collections.Counter(
        clip.given["refused"].partition(":")[0] for clip in table if "refused" in clip.given
    )
    usable = [clip for clip in table if "refused" not in clip.given]
    seconds = sum(clip.end - (clip.start or 0) for clip in usable if clip.end is not None)
    print(f"{args.source}: {len(table):,} rows, {len(usable):,} clips to look at")
    print(f"  without a caption: {sum(clip.text is None for clip in usable):,}")
    if seconds:
        print(f"  cut to times: {seconds / 3600:,.1f} hours")
    for reason, count in reasons.most_common():
        first = next(c for c in table if c.given.get("refused", "").startswith(reason + ":"))
        print(f"  {reason}: {count:,} (first: {first.id}: {first.given['refused']})")
    for clip in usable[:3]:
        print(f"  {clip}")


if __name__ == "__main__":
    main()

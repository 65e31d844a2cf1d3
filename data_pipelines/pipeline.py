"""From a source of captioned clips to a checked, filtered, sharded data set, and why of each clip.

    python -m data_pipelines.pipeline --source=clips.csv --out=DIR

The source is a folder of videos and images with captions beside them, a .csv, .parquet or .jsonl
table of paths and texts, WebDataset tars, openvid:FOLDER or miradata:FOLDER (python -m
data_pipelines.sources says more). Every file is decoded to the end in a child process that can do
nothing else. DIR gets the shards and ledger.parquet, which has a row for each clip: what it is, and
what it was left out for.

--config=configs/data.py cuts scenes, measures, filters and drops copies; each of its fields is a
flag: --config.dedup.near=6, --config.rules="motion >= 0.5; 2 <= seconds <= 30". Without it nothing
is done but the check. --dry-run tries a sample, and says what the whole will take.

The command may be stopped at any moment, kill -9 included: run again, it goes on and gives the same
bytes; a finished folder is recognised. Where the source or the config has changed since, DIR
grows: only what differs is decoded and written. --runner=flink, spark or dataflow gives the work to
a cluster through Apache Beam, where all machines see the folder: docs/pipeline.md.
"""

import argparse
import os
import shlex
import signal
import sys

from data_pipelines.process import arguments, outputs
from data_pipelines.shards import builder
from data_pipelines.sources import specs
from data_pipelines.stages import dry_run, exchange, ingest, ledger, parts, plan, runner, summary

EXIT_GO_ON = 75  # run it again, as of the other commands


def main(argv: list[str] | None = None):
    parser = arguments.Parser("data_pipelines.pipeline", __doc__)
    add = parser.add_argument
    add(
        "--source",
        required=True,
        action="append",
        help="folder, table, tars, openvid:FOLDER, miradata:FOLDER; may come several times",
    )
    add("--out", required=True, help="folder to make, or the data set that grows")
    add("--config", help="configs/data.py and the like; each field is a flag --config.FIELD=VALUE")
    at_least = arguments.at_least
    add("--num_workers", type=at_least(0), default=0, help="decoders; 0: one a processor")
    add("--keep_parts", metavar="DIR", help="keep what was measured, for runs with other rules")
    add("--shrink", action="store_true", help="a data set may lose more than half of its clips")
    add("--runner", default="local", choices=["local", *runner.RUNNERS], help="who does the work")
    add("--beam_args", default="", help="flags for Apache Beam's runner, in one pair of quotes")
    add(
        "--exchange",
        default="",
        metavar="URL",
        help="where machines share no disk: gs://bucket/job",
    )
    add(
        *("--dry-run", "--dry_run"),
        nargs="?",
        type=at_least(1),
        const=64,
        metavar="CLIPS",
        help="examine a sample (64), write nothing, and tell what the whole will take",
    )
    for name in ("max_bytes", "max_frames", "max_pixels"):
        add(f"--{name}", metavar="N", help=f"of a file: --config.limits.{name}")
    args, rest = parser.parse_known_args(argv)
    try:
        with parser.refusing():
            config = plan.load(args.config, _overrides(parser, args, rest))
            engine = _engine(args)
            if args.dry_run is not None:
                table = specs.read_all(args.source)
                workers = args.num_workers or os.cpu_count() or 1
                plain = ingest.check(config, table)
                print(dry_run.estimate(table, plain, workers, args.dry_run))
                return
            outputs.check_folder(args.out)
            if args.keep_parts is not None:
                outputs.check_folder(args.keep_parts, "--keep_parts")
            tell: list[summary.Stage] = []
            how = {"engine": engine, "keep_parts": args.keep_parts, "tell": tell}
            how["shrink"] = args.shrink
            print(summary.rules({"rules": config.rules}), flush=True)
            meta = ingest.run(args.source, args.out, config, **how)
    except (KeyboardInterrupt, parts.Stopped):
        _leave(args)
    _print_summary(args.out, meta, tell)


def _engine(args: argparse.Namespace) -> runner.Engine:
    """Returns who does the work, from flags that fit together."""
    if args.runner == "local" and (args.beam_args or args.exchange):
        flag = "beam_args" if args.beam_args else "exchange"
        raise ValueError(f"--{flag} is for Apache Beam: name a --runner.")
    if args.exchange:
        exchange.check(args.exchange)
    beam_args = tuple(shlex.split(args.beam_args))
    return runner.Engine(args.runner, args.num_workers, beam_args, args.exchange)


def _overrides(
    parser: arguments.Parser, args: argparse.Namespace, rest: list[str]
) -> list[tuple[str, str]]:
    """Returns (field, value) of the flags --config.FIELD=VALUE and of the older names of some."""
    found = [
        (f"limits.{name}", value)
        for name in ("max_bytes", "max_frames", "max_pixels")
        if (value := getattr(args, name)) is not None
    ]
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if not flag.startswith("--config."):
            parser.error(parser.unknown(flag))
        if not equals:
            if not rest:
                raise ValueError(f"{flag} needs a value: {flag}=VALUE.")
            value = rest.pop(0)
        found.append((flag.removeprefix("--config."), value))
    return found


def _leave(args: argparse.Namespace):
    """Ends at once: threads may wait for files, and whatever is half done is made again."""
    if args.dry_run is None:
        work = builder.work_folder(args.out)
        print(f"\nstopped; {work} keeps what is done, the same command goes on.", file=sys.stderr)
    sys.stderr.flush()
    os._exit(EXIT_GO_ON)


def _print_summary(out: str, meta: dict, tell: list[summary.Stage]):
    left_out = ", ".join(f"{rule}: {n:,}" for rule, n in meta["left_out"].items())
    scenes = f" from {meta['num_rows']:,} rows" if meta["num_clips"] != meta["num_rows"] else ""
    shards_told = f"{len(meta['shards']):,} shard" + "s" * (len(meta["shards"]) != 1)
    if tell:
        print(f"\n{summary.stages(tell)}\n")
        print(f"{summary.verdicts(meta['num_records'], meta['left_out'])}\n")
    print(
        f"{out}: {meta['num_records']:,} of {meta['num_clips']:,} clips{scenes} in "
        f"{shards_told}; left out: {left_out or 'none'}"
        + (f" (see {os.path.join(out, ledger.NAME)})" if left_out else "")
    )


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs have SIGINT off
        signal.signal(number, signal.default_int_handler)
    main()

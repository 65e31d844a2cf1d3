"""Filter rules on the ledger's columns: `motion >= 0.1`, `2 <= seconds <= 30`, `camera != 'pan'`.

A rule is a comparison, or several joined by `and`, `or`, `not`; a clip has to pass all rules, and
the first one that it does not pass is its verdict. It is parsed, never run as code. Names are the
columns of the ledger, those of `DERIVED`, and `given.NAME` for what the source says of a clip.

A value that is missing makes a comparison neither true nor false, as in SQL, and a clip passes only
what is true: a clip without `motion` does not pass `motion >= 0.1`, nor `motion < 0.1`, but it does
pass `kind == 'image' or motion >= 0.1` if it is an image. `motion is None` asks for it.
"""

import ast
import dataclasses
import difflib
import functools
import json
from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.stages import ledger

DERIVED = {
    "seconds": "length of a video; null for an image",
    "pixels": "height times width",
    "short_side": "of the picture, in pixels",
    "aspect": "height / width",
    "words": "of the caption",
}
LATE = frozenset({"caption", "words", "match", "aesthetic", "text_share"})  # what models say
_OPERATORS = {
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
}
_GRAMMAR = (
    "a rule compares columns with numbers and quoted words (< <= > >= == != in, is None), joined "
    "by and, or, not"
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule: `text` as written, `names` of the columns in it."""

    text: str
    names: tuple[str, ...]

    def is_late(self) -> bool:
        """Tells whether it asks for what models and captions give, after all other rules."""
        return bool(LATE & {*self.names})

    def passed(self, table: pa.Table) -> pa.Array:
        """Returns for each row whether it passes: true or false, never null."""
        result = _truth(_parse(self.text), table)
        return pc.fill_null(_as_array(result, len(table)), False)

    def message(self, row: dict) -> str:
        """Returns what the columns of the rule hold in a row of a table with `values`."""
        return ", ".join(
            f"{name} has no value" if row[name] is None else f"{name} is {_readable(row[name])}"
            for name in self.names
        )


def parse(texts: Sequence[str], said: Collection[str] | None = None) -> list[Rule]:
    """Parses rules and checks their names and types, all of them before any work.

    Args:
        texts: The rules as written.
        said: Names that the source's `given` holds; None: not known.

    Raises:
        ValueError: If one is no rule, names an unknown column (the nearest is named), or compares
            words with numbers.
    """
    if isinstance(texts, str):
        raise ValueError(f"rules={texts!r} is one text: give a tuple of rules.")
    rules, empty = [], ledger.table([])
    for text in texts:
        tree = _parse(text)
        names = []
        for name in _names(tree):
            if name not in names:
                names.append(name)
            there = [*ledger.SCHEMA.names, *DERIVED]
            if name.startswith("given."):
                there = [name] if said is None else [f"given.{other}" for other in sorted(said)]
            if name not in there:
                raise ValueError(f"rule {text!r}: there is no column {_suggest(name, there)}")
        try:
            unsaid = {name: pa.null() for name in names if name.startswith("given.")}
            result = _truth(tree, _with_given(empty, unsaid))
        except pa.ArrowException as error:
            raise ValueError(
                f"rule {text!r} compares words with numbers: quote words, not numbers."
            ) from error
        if not pa.types.is_boolean(result.type):
            raise ValueError(f"rule {text!r} is neither true nor false: {_GRAMMAR}.")
        rules.append(Rule(text, tuple(names)))
    return rules


def apply(
    rules: Sequence[Rule], table: pa.Table, types: Mapping[str, pa.DataType] | None = None
) -> list[tuple[str, str] | None]:
    """Returns for each row (rule as written, message) of the first rule it fails, or None.

    Args:
        rules: In their order.
        table: Rows of a ledger.
        types: What `given_types` says of all rows, of which these are some; None: these are all.
    """
    types, verdicts = given_types(rules, table) if types is None else types, []
    for block in ledger.blocks(table):
        verdicts += _verdicts(rules, _with_given(block, types))
    return verdicts


def given_types(rules: Sequence[Rule], table: pa.Table) -> dict[str, pa.DataType]:
    """Returns the type of each `given.NAME` of the rules: numbers if all of it are, else words."""
    names = {name for rule in rules for name in rule.names if name.startswith("given.")}
    types = dict.fromkeys(sorted(names), pa.null())
    for block in ledger.blocks(table.select(["given"]) if types else table.slice(0, 0)):
        for text in block["given"].to_pylist():
            said = json.loads(text) if text else {}
            for name in types:
                value = said.get(name.removeprefix("given."))
                if value is not None and types[name] != pa.string():
                    is_number = isinstance(value, (int, float))
                    types[name] = pa.float64() if is_number else pa.string()
    return types


def _verdicts(rules: Sequence[Rule], table: pa.Table) -> list[tuple[str, str] | None]:
    verdicts: list[tuple[str, str] | None] = [None] * len(table)
    for rule in rules:
        passed = rule.passed(table)
        failed = pc.indices_nonzero(pc.invert(passed)).to_pylist()
        failed = [number for number in failed if verdicts[number] is None]
        here = pa.array(failed, pa.int64())
        values = {name: column(table, name).take(here).to_pylist() for name in rule.names}
        for place, number in enumerate(failed):
            row = {name: values[name][place] for name in rule.names}
            verdicts[number] = (rule.text, rule.message(row) + ".")
    return verdicts


def column(table: pa.Table, name: str) -> pa.ChunkedArray | pa.Array:
    """Returns a column of a ledger by name, a derived one, or a `given.NAME` that is there."""
    if name == "seconds":
        value = pc.divide(table["num_frames"].cast(pa.float64()), table["fps"])
        return pc.if_else(pc.equal(table["kind"], "video"), value, pa.scalar(None, pa.float64()))
    if name == "pixels":
        return pc.multiply(table["height"].cast(pa.int64()), table["width"].cast(pa.int64()))
    if name == "short_side":
        return pc.min_element_wise(table["height"], table["width"], skip_nulls=False)
    if name == "aspect":
        return pc.divide(table["height"].cast(pa.float64()), table["width"].cast(pa.float64()))
    if name == "words":
        trimmed = pc.utf8_trim_whitespace(table["caption"])
        words = pc.list_value_length(pc.utf8_split_whitespace(trimmed))
        return pc.if_else(pc.equal(trimmed, ""), pa.scalar(0, pa.int32()), words)
    return table[name]


def _with_given(table: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Returns a ledger with a column of each type's name, of what the source says."""
    if not types:
        return table
    said = [json.loads(text) if text else {} for text in table["given"].to_pylist()]
    for name, kind in types.items():
        values = [row.get(name.removeprefix("given.")) for row in said]
        as_kind = float if kind == pa.float64() else str
        values = [None if value is None else as_kind(value) for value in values]
        table = table.append_column(name, pa.array(values, kind))
    return table


@functools.cache
def _parse(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"rule {text!r} cannot be read ({error}): {_GRAMMAR}.") from error


def _names(tree: ast.expr) -> list[str]:
    if isinstance(tree, ast.Name):
        return [tree.id]
    if isinstance(tree, ast.Attribute):
        return [ast.unparse(tree)]
    return [name for child in ast.iter_child_nodes(tree) for name in _names(child)]


def _truth(tree: ast.expr, table: pa.Table):
    """Evaluates a syntax tree on the columns; only what a rule may hold is known here."""
    if isinstance(tree, ast.BoolOp):
        join = pc.and_kleene if isinstance(tree.op, ast.And) else pc.or_kleene
        return functools.reduce(join, (_truth(value, table) for value in tree.values))
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not):
        return pc.invert(_truth(tree.operand, table))
    if isinstance(tree, ast.Compare):
        sides = [tree.left, *tree.comparators]
        pairs = zip(sides, tree.ops, sides[1:], strict=False)
        parts = [_compare(left, operator, right, table) for left, operator, right in pairs]
        return functools.reduce(pc.and_kleene, parts)
    return _operand(tree, table)


def _compare(left: ast.expr, operator: ast.cmpop, right: ast.expr, table: pa.Table):
    if isinstance(operator, (ast.Is, ast.IsNot)) and ast.unparse(right) == "None":
        missing = pc.is_null(_operand(left, table))
        return missing if isinstance(operator, ast.Is) else pc.invert(missing)
    if isinstance(operator, (ast.In, ast.NotIn)) and isinstance(right, (ast.Tuple, ast.List)):
        found = [_compare(left, ast.Eq(), value, table) for value in right.elts]
        found = functools.reduce(pc.or_kleene, found, pa.scalar(False))
        return found if isinstance(operator, ast.In) else pc.invert(found)
    if type(operator) not in _OPERATORS:
        raise ValueError(f"{ast.unparse(left)} {_symbol(operator)} ...: {_GRAMMAR}.")
    left, right = _operand(left, table), _operand(right, table)
    if pa.float32() in (left.type, right.type):  # 0.7 as a float32 is less than 0.7
        left, right = left.cast(pa.float32()), right.cast(pa.float32())
    return _OPERATORS[type(operator)](left, right)


def _operand(tree: ast.expr, table: pa.Table):
    if isinstance(tree, ast.Name) or (
        isinstance(tree, ast.Attribute) and ast.unparse(tree.value) == "given"
    ):
        return column(table, ast.unparse(tree))
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        return pc.negate(_operand(tree.operand, table))
    if isinstance(tree, ast.Constant) and type(tree.value) in (int, float, str):
        return pa.scalar(float(tree.value) if type(tree.value) is int else tree.value)
    raise ValueError(f"{ast.unparse(tree)!r} does not belong in a rule: {_GRAMMAR}.")


def _as_array(value, length: int) -> pa.Array:
    if isinstance(value, pa.Scalar):
        return pa.array([value.as_py()] * length, pa.bool_())
    return value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value


def _symbol(operator: ast.cmpop) -> str:
    return {ast.In: "in", ast.NotIn: "not in", ast.Is: "is", ast.IsNot: "is not"}[type(operator)]


def _suggest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    meant = " or ".join(repr(n) for n in near)
    return (
        f"{name!r}; did you mean {meant}?" if near else f"{name!r}; there are {', '.join(names)}."
    )


def _readable(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:80]

"""Conditions on the columns of a gallery, as in SQL: `brand = 'X' and (price < 50 or in_stock)`.

    condition   = conjunction {"or" conjunction}
    conjunction = factor {"and" factor}
    factor      = "not" factor | "(" condition ")" | comparison
    comparison  = operand ("=" | "!=" | "<>" | "<" | "<=" | ">" | ">=") operand
                | operand ["not"] "in" "(" operand {"," operand} ")"
                | operand ["not"] "between" operand "and" operand
                | operand "is" ["not"] "null"
                | column of true and false
    operand     = column | "column" | 'text' | number | true | false

A row without a value satisfies no comparison, nor the comparison's opposite, as in SQL. Dates are compared with texts
such as '2026-11-30'. Nothing of a condition is executed: it is parsed, and computed by Arrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyparsing as pp

from data_prep.errors import InputError
from pipeline.common.hints import nearest

LONGEST = 1_000
"""Characters of the longest condition."""
COMPARE = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
WORDS = ("and", "or", "not", "in", "between", "is", "null", "true", "false")


@dataclass(frozen=True)
class Column:
    """Name of a column in a condition."""

    name: str


@dataclass(frozen=True)
class Literal:
    """Value in a condition."""

    value: str | int | float | bool


Operand = Column | Literal
Mask = Any
"""Arrow's array of true, false and null, one for each row."""
Condition = Callable[[pa.Table], Mask]


def matching(table: pa.Table, condition: str) -> np.ndarray:
    """Return the rows, in order, that satisfy a condition: int64.

    Raises InputError for a condition that cannot be parsed, with the place; for an unknown column, with the nearest
    name; and for a comparison of values of different kinds.
    """
    mask = parsed(condition)(table)
    return np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False))


def parsed(text: str) -> Condition:
    """Parse a condition. Raises InputError with the place of a mistake."""
    if len(text) > LONGEST:
        raise InputError(f"where: has {len(text):,} characters; at most {LONGEST:,} are read")
    try:
        return _grammar().parse_string(text, parse_all=True)[0]
    except pp.ParseBaseException as error:
        rest = text[error.loc :].strip()
        found = f"{rest.split()[0][:30]!r}" if rest else "the end"
        raise InputError(
            f"where: {found} at character {error.loc + 1} cannot be read; write conditions such as "
            "brand = 'X' and price < 50"
        ) from None
    except RecursionError:
        raise InputError("where: has too many parentheses in each other") from None


@cache
def _grammar() -> pp.ParserElement:
    word = {name: pp.CaselessKeyword(name) for name in WORDS}
    reserved = pp.MatchFirst(word.values())
    name = ~reserved + pp.Word(pp.unicode.alphas + "_", pp.unicode.alphanums + "_")
    quoted = pp.QuotedString('"', esc_quote='""', unquote_results=True, convert_whitespace_escapes=False)
    column = (name | quoted).set_parse_action(lambda found: Column(found[0]))
    text = pp.QuotedString("'", esc_quote="''", unquote_results=True, convert_whitespace_escapes=False, multiline=True)
    number = pp.Regex(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?(?!\w)").set_parse_action(lambda found: _number(found[0]))
    truth = (word["true"] | word["false"]).set_parse_action(lambda found: found[0] == "true")
    literal = (text | number | truth).set_parse_action(lambda found: Literal(found[0]))
    operand = literal | column
    several = pp.Suppress("(") - pp.DelimitedList(operand) - pp.Suppress(")")
    compared = pp.one_of(list(COMPARE)) - operand
    within = pp.Optional(word["not"]) + (
        word["in"] - several | word["between"] - operand - pp.Suppress(word["and"]) - operand
    )
    absent = word["is"] - pp.Optional(word["not"]) - word["null"]
    comparison = (operand + pp.Optional(compared | within | absent)).set_parse_action(_comparison)
    condition = pp.Forward()
    factor = pp.Forward()
    negated = (pp.Suppress(word["not"]) - factor).set_parse_action(lambda found: _inverse(found[0]))
    factor <<= negated | pp.Suppress("(") - condition - pp.Suppress(")") | comparison
    conjunction = factor + (pp.Suppress(word["and"]) - factor)[...]
    conjunction.set_parse_action(lambda found: _all(pc.and_kleene, found.as_list()))
    condition <<= conjunction + (pp.Suppress(word["or"]) - conjunction)[...]
    condition.set_parse_action(lambda found: _all(pc.or_kleene, found.as_list()))
    return condition


def _number(text: str) -> int | float:
    try:
        whole = int(text)
        return whole if -(2**63) <= whole < 2**63 else float(text)
    except ValueError:
        return float(text)


def _comparison(found: pp.ParseResults) -> Condition:
    first, *rest = found.as_list()
    match rest:
        case []:
            return lambda table: _truth(table, first)
        case ["is", *negated, "null"]:
            return lambda table: (pc.is_valid if negated else pc.is_null)(_column(table, first))
        case ["not", *others]:
            return _inverse(_among(first, others))
        case ["in" | "between", *_]:
            return _among(first, rest)
        case [sign, second]:
            return lambda table: _compare(table, sign, first, second)
    raise AssertionError(rest)


def _among(first: Operand, rest: Sequence[Any]) -> Condition:
    kind, *others = rest
    if kind == "in":
        return _all(pc.or_kleene, [_comparing("=", first, one) for one in others])
    low, high = others
    return _all(pc.and_kleene, [_comparing(">=", first, low), _comparing("<=", first, high)])


def _comparing(sign: str, first: Operand, second: Operand) -> Condition:
    return lambda table: _compare(table, sign, first, second)


def _all(combine: Callable[[Mask, Mask], Mask], conditions: Sequence[Condition]) -> Condition:
    return lambda table: reduce(combine, [one(table) for one in conditions])


def _inverse(condition: Condition) -> Condition:
    return lambda table: pc.invert(condition(table))


def _truth(table: pa.Table, one: Operand) -> Mask:
    cells = _column(table, one)
    if not pa.types.is_boolean(cells.type):
        raise InputError(f"where: {_shown(one)} alone is no condition; compare it, as in {_shown(one)} = …")
    return cells


def _compare(table: pa.Table, sign: str, first: Operand, second: Operand) -> Mask:
    one, other = _cells(table, first), _cells(table, second)
    if isinstance(first, Literal) and isinstance(second, Literal):
        raise InputError(f"where: {_shown(first)} and {_shown(second)} are both values; compare a column with a value")
    one, other = _as_date(first, one, other.type), _as_date(second, other, one.type)
    if kind_of(one.type) != kind_of(other.type):
        raise InputError(
            f"where: {_shown(first)} {sign} {_shown(second)} compares {kind_of(one.type)} with {kind_of(other.type)}"
        )
    return COMPARE[sign](one, other)


def _column(table: pa.Table, one: Operand) -> pa.ChunkedArray:
    if isinstance(one, Literal):
        raise InputError(f"where: {_shown(one)} is a value; a condition names a column, as in price < 50")
    return _cells(table, one)


def _cells(table: pa.Table, one: Operand) -> pa.ChunkedArray | pa.Scalar:
    if isinstance(one, Literal):
        return pa.scalar(one.value)
    if one.name not in table.column_names:
        raise InputError(f"where: no column {one.name!r}; {nearest(one.name, table.column_names)}")
    return table[one.name]


def _as_date(one: Operand, cells: Any, other: pa.DataType) -> Any:
    """Return a text that is compared with dates as a date. Raises InputError if it is none."""
    if not (isinstance(one, Literal) and isinstance(one.value, str) and pa.types.is_temporal(other)):
        return cells
    try:
        return cells.cast(pa.timestamp("us"))
    except pa.ArrowInvalid:
        raise InputError(f"where: {_shown(one)} is no date; write dates as '2026-11-30'") from None


def kind_of(of: pa.DataType) -> str:
    """Return the kind of a column's cells, in words."""
    if pa.types.is_boolean(of):
        return "true or false"
    if pa.types.is_temporal(of):
        return "a date"
    return "text" if pa.types.is_string(of) else "a number"


def _shown(one: Operand) -> str:
    if isinstance(one, Column):
        return one.name
    return f"'{one.value}'" if isinstance(one.value, str) else str(one.value).lower()

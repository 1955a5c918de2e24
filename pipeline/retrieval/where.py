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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyparsing as pp

from data_prep.errors import InputError
from data_prep.hints import nearest

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


@dataclass(frozen=True)
class Comparison:
    """Condition that compares two operands; `sign` is one of COMPARE."""

    sign: str
    first: Operand
    second: Operand


@dataclass(frozen=True)
class Absent:
    """Condition that an operand has no value."""

    operand: Operand


@dataclass(frozen=True)
class Truth:
    """Condition that a column of true and false is true."""

    operand: Operand


@dataclass(frozen=True)
class Not:
    """Opposite of a condition."""

    inner: Condition


@dataclass(frozen=True)
class Several:
    """Conditions that must all hold, or of which one must."""

    every: bool
    parts: tuple[Condition, ...]


Condition = Comparison | Absent | Truth | Not | Several
"""A parsed condition. `in` and `between` are several comparisons."""
Mask = Any
"""Arrow's array of true, false and null, one for each row."""


def matching(table: pa.Table, condition: str) -> np.ndarray:
    """Return the rows, in order, that satisfy a condition: int64.

    Raises InputError for a condition that cannot be parsed, with the place; for an unknown column, with the nearest
    name; and for a comparison of values of different kinds.
    """
    mask = _mask(table, parsed(condition))
    return np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False))


def checked(schema: pa.Schema, condition: str) -> Condition:
    """Parse a condition on columns of this schema. Raises InputError as `matching`."""
    found = parsed(condition)
    _mask(schema.empty_table(), found)
    return found


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
    name = ~reserved + pp.Regex(r"[^\W\d]\w*")
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
    negated = (pp.Suppress(word["not"]) - factor).set_parse_action(lambda found: Not(found[0]))
    factor <<= negated | pp.Suppress("(") - condition - pp.Suppress(")") | comparison
    conjunction = factor + (pp.Suppress(word["and"]) - factor)[...]
    conjunction.set_parse_action(lambda found: _several(True, found))
    condition <<= conjunction + (pp.Suppress(word["or"]) - conjunction)[...]
    condition.set_parse_action(lambda found: _several(False, found))
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
            return Truth(first)
        case ["is", *negated, "null"]:
            return Not(Absent(first)) if negated else Absent(first)
        case ["not", *others]:
            return Not(_among(first, others))
        case ["in" | "between", *_]:
            return _among(first, rest)
        case [sign, second]:
            return Comparison(sign, first, second)
    raise AssertionError(rest)


def _among(first: Operand, rest: Sequence[Any]) -> Condition:
    kind, *others = rest
    if kind == "in":
        return _several(False, [Comparison("=", first, one) for one in others])
    low, high = others
    return _several(True, [Comparison(">=", first, low), Comparison("<=", first, high)])


def _several(every: bool, parts: Iterable[Condition]) -> Condition:
    first, *others = parts
    return Several(every, (first, *others)) if others else first


def _mask(table: pa.Table, condition: Condition) -> Mask:
    match condition:
        case Comparison(sign, first, second):
            return _compare(table, sign, first, second)
        case Absent(operand):
            return pc.is_null(_column(table, operand))
        case Truth(operand):
            return _truth(table, operand)
        case Not(inner):
            return pc.invert(_mask(table, inner))
        case Several(every, parts):
            return reduce(pc.and_kleene if every else pc.or_kleene, [_mask(table, one) for one in parts])


def _truth(table: pa.Table, one: Operand) -> Mask:
    cells = _column(table, one)
    if not pa.types.is_boolean(cells.type):
        raise InputError(f"where: {_shown(one)} alone is no condition; compare it, as in {_shown(one)} = …")
    return cells


def _compare(table: pa.Table, sign: str, first: Operand, second: Operand) -> Mask:
    one, other = _cells(table, first), _cells(table, second, " (a text has quotes, as in 'X')")
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


def _cells(table: pa.Table, one: Operand, hint: str = "") -> pa.ChunkedArray | pa.Scalar:
    if isinstance(one, Literal):
        return pa.scalar(one.value)
    if one.name not in table.column_names:
        raise InputError(f"where: no column {one.name!r}{hint}; {nearest(one.name, table.column_names)}")
    return table[one.name]


def _as_date(one: Operand, cells: Any, other: pa.DataType) -> Any:
    """Return a text that is compared with dates as a date. Raises InputError if it is none."""
    if not (isinstance(one, Literal) and isinstance(one.value, str) and pa.types.is_temporal(other)):
        return cells
    try:
        return pa.scalar(moment(one.value))
    except pa.ArrowInvalid:
        raise InputError(f"where: {_shown(one)} is no date; write dates as '2026-11-30'") from None


def moment(text: str) -> datetime:
    """Return the date and time that a text names. Raises ArrowInvalid if it names none."""
    try:
        return pa.scalar(text).cast(pa.timestamp("us")).as_py()
    except OverflowError as error:  # Arrow knows years that Python does not
        raise pa.ArrowInvalid(str(error)) from error


def type_of(one: Operand, columns: pa.Schema) -> pa.DataType:
    """Return the type of an operand, for columns of this schema."""
    return columns.field(one.name).type if isinstance(one, Column) else pa.scalar(one.value).type


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

"""Units: which are known, and how a value of one becomes a value of another.

pint knows the units and how they hang together; here are the names that plants use beside its own.
A unit's text is foreign. pint would compute what looks like a sum, so only names, products, quotients
and small powers reach it. pint is imported when the first unit is met, which takes half a second: the
first look at a unit belongs into a thread, as `is_ready` says.
"""

import functools
import re
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from services.ingest.domain.payload import LONGEST_UNIT

if TYPE_CHECKING:
    from pint import UnitRegistry

Convert = Callable[[float], float]
"""May raise ValueError if there is no such value in the other unit."""


class UnknownUnit(ValueError):
    """No unit of that name is known."""


class UnitMismatch(ValueError):
    """The units do not measure the same."""


REMEMBERED = 4_096
"""Pairs of units whose conversion is kept."""

# Where pint counts everything by itself (radians, bits), a value would pass from turns to hertz
# without anybody's saying so, and wrong by 2π.
_DEFINITIONS = (
    "radian = [angle] = rad",
    "turn = 6.283185307179586 * radian = _ = revolution = cycle = circle",
    "degree = turn / 360 = deg = arcdeg",
    "revolutions_per_minute = turn / minute = rpm",
    "bit = [information]",
    "byte = 8 * bit = B = octet",
    "count = [count]",
    "pH_value = [acidity] = pH",
    "NTU = [turbidity] = nephelometric_turbidity_unit",
    "var = volt * ampere",
    "normal_cubic_meter = [normal_volume] = Nm3",
)

_ALIASES = {
    "%RH": "percent",
    "%rh": "percent",
    "%EL": "percent",
    "‰": "permille",
    "°": "degree",
    "C": "degC",
    "Cel": "degC",
    "celsius": "degC",
    "Celsius": "degC",
    "DegC": "degC",
    "deg C": "degC",
    "° C": "degC",
    "F": "degF",
    "degf": "degF",
    "Fahrenheit": "degF",
    "fahrenheit": "degF",
    "deg F": "degF",
    "Kelvin": "kelvin",
    "Nm": "N*m",
    "kNm": "kN*m",
    "RPM": "rpm",
    "U/min": "rpm",
    "1/min": "1/min",
    "PSI": "psi",
    "Bar": "bar",
    "BAR": "bar",
    "KW": "kW",
    "kw": "kW",
    "kwh": "kWh",
    "KWh": "kWh",
    "VA": "volt_ampere",
    "kVA": "kilovolt_ampere",
    "MVA": "megavolt_ampere",
    "kvar": "kilovar",
    "kVAr": "kilovar",
    "Ohm": "ohm",
    "sec": "second",
    "hr": "hour",
    "hrs": "hour",
    "ltr": "liter",
    "lpm": "l/min",
    "cfm": "ft**3/min",
    "gpm": "gal/min",
    "inH2O": "inch_H2O",
    "mmH2O": "mm_H2O",
    "Nm3/h": "Nm3/h",
    "Nm3": "Nm3",
    "pH": "pH_value",
    "cps": "count/s",
    "pcs": "count",
    "Mbit": "megabit",
}
"""Names of plants. `C` is degrees here; SenML, where it is the coulomb, has names of its own."""

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_TERM = re.compile(r"(?P<name>[^\W\d]\w*?|°\w*|%\w*|‰)(?:(?:\*\*|\^)?(?P<power>-?\d))?\Z")
_OPERATOR = re.compile(r"\s*(?:(?<!\*)\*(?!\*)|[·⋅/])\s*")


def is_known(unit: str) -> bool:
    """Whether values may be in this unit."""
    try:
        converter(unit, None)
    except UnknownUnit:
        return False
    return True


def is_ready(written: str, wanted: str | None) -> bool:
    """Whether `converter` has its answer at hand."""
    return (written, wanted) in _ready


def converter(written: str, wanted: str | None) -> Convert | None:
    """Return what makes of a value in one unit one in the other; None if the value is the same.

    `wanted` None: only whether the unit is known is looked at. Raises UnknownUnit, or UnitMismatch
    if the two do not measure the same.
    """
    key = (written, wanted)
    try:
        answer = _ready[key]
    except KeyError:
        try:
            answer = _converter(written, wanted)
        except ValueError as error:
            answer = error
        if len(_ready) >= REMEMBERED:
            _ready.clear()
        _ready[key] = answer
    if isinstance(answer, ValueError):
        raise answer.with_traceback(None)
    return answer


_ready: dict[tuple[str, str | None], Convert | ValueError | None] = {}


def _converter(written: str, wanted: str | None) -> Convert | None:
    source = _parsed(written)
    if wanted is None:
        return None
    target = _parsed(wanted)
    if source == target:
        return None
    exact = _registry(is_exact=True)
    try:
        zero, one, two = (exact.convert(Decimal(value), source, target) for value in range(3))
    except TypeError:
        return _by_logarithm(written, wanted)
    except Exception as error:
        raise UnitMismatch(f"{written} does not measure what {wanted} does") from error
    if zero == 0:
        factor = float(one)
        return lambda value: value * factor
    # Digit by digit: in doubles 212 °F are 100.00000000000006 °C.
    slope = two - one
    return lambda value: float(Decimal(repr(value)) * slope + zero)


def _by_logarithm(written: str, wanted: str) -> Convert:
    """Return what converts a level, which has no exact arithmetic. Raises UnitMismatch."""
    registry = _registry(is_exact=False)
    source, target = _parsed(written, is_exact=False), _parsed(wanted, is_exact=False)
    try:
        registry.convert(1.0, source, target)
    except Exception as error:
        raise UnitMismatch(f"{written} does not measure what {wanted} does") from error
    return lambda value: float(registry.convert(value, source, target))


def _parsed(unit: str, *, is_exact: bool = True) -> Any:
    """Return pint's unit. Raises UnknownUnit."""
    text = unit.strip()
    if not text or len(text) > LONGEST_UNIT:
        raise UnknownUnit("a unit has 1 to 64 characters")
    expression = _ALIASES.get(text) or _expression(text)
    if expression is None:
        raise UnknownUnit(f"no unit is called {text}")
    registry = _registry(is_exact=is_exact)
    try:
        return registry.parse_units(expression)
    except Exception as error:
        raise UnknownUnit(f"no unit is called {text}") from error


def _expression(text: str) -> str | None:
    """Return a unit as pint is given it: names, products, quotients and powers of one digit."""
    plain = _SUPERSCRIPT.sub(lambda found: "**" + found[0].translate(_SUPERSCRIPTS), text)
    operators = _OPERATOR.findall(plain)
    parts = []
    for position, term in enumerate(_OPERATOR.split(plain)):
        if term == "1" and position == 0:
            parts.append("1")
            continue
        found = _TERM.match(term.strip())
        if found is None:
            return None
        name = _ALIASES.get(found["name"], found["name"])
        parts.append(f"({name})**({found['power']})" if found["power"] else f"({name})")
    signs = ["/" if "/" in operator else "*" for operator in operators]
    return "".join(part + sign for part, sign in zip(parts, [*signs, ""], strict=True))


@functools.cache
def _registry(*, is_exact: bool) -> "UnitRegistry[Any]":
    """Return the units, their sizes in decimals or in doubles; the latter only once a level is met."""
    import pint

    registry: UnitRegistry[Any] = pint.UnitRegistry(
        autoconvert_offset_to_baseunit=True,
        on_redefinition="ignore",
        non_int_type=Decimal if is_exact else float,
    )
    for definition in _DEFINITIONS:
        registry.define(definition)
    # Without it, what was derived from a unit goes on having the dimension that it had before.
    registry._build_cache()
    return registry

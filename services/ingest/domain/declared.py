"""What a profile says of the points that its devices send."""

from libs.common.historian.point import Kind, Quality
from services.ingest.domain.payload import NO_VALUE, Decoded, Point, as_reading
from services.ingest.domain.profile import MetricDeclaration, Profile


def fit(profile: Profile, decoded: Decoded) -> None:
    """Name the points as the profile does, in the kinds it declares; refuse what is of another.

    A value without a unit is in the declared one. 0 and 1 may stand for a bool.
    """
    if not profile.fields and not profile.metrics:
        return
    kept = []
    for position, written in enumerate(decoded.points):
        point = written._replace(metric=profile.fields.get(written.metric, written.metric))
        declared = profile.metrics.get(point.metric)
        fitted = point if declared is None else _as_declared(point, declared)
        if fitted is None:
            assert declared is not None
            assert declared.kind is not None
            decoded.refuse(
                decoded.reading_of(position),
                point.metric,
                "type_changed",
                f"{point.metric} holds values of type {declared.kind.name.lower()},"
                f" this is {point.kind.name.lower()}",
                point_as_reading(written),
            )
        kept.append(fitted is not None)
        decoded.points[position] = fitted or written
    if not all(kept):
        decoded.keep(kept)


def is_outside(value: float, declared: MetricDeclaration) -> bool:
    """Whether a number, in the declared unit, lies outside what the profile says it can be."""
    return (declared.minimum is not None and value < declared.minimum) or (
        declared.maximum is not None and value > declared.maximum
    )


def of_kind(point: Point, kind: Kind) -> Point | None:
    """Return a point as one of this kind; None if its value is none such.

    A point of bad quality that has no value has none of any kind.
    """
    if point.kind is kind:
        return point
    if point.quality is Quality.BAD and point.value != point.value:
        return point._replace(kind=kind, value="" if kind is Kind.TEXT else NO_VALUE)
    return None


def point_as_reading(point: Point) -> dict[str, object]:
    """Return a point as the reading that it would be in JSON."""
    value: object = bool(point.value) if point.kind is Kind.BOOL else point.value
    if point.value != point.value:
        value = None
    return as_reading(point.metric, point.ts, value, point.quality, point.unit)


def _as_declared(point: Point, declared: MetricDeclaration) -> Point | None:
    if declared.unit is not None and point.unit is None:
        point = point._replace(unit=declared.unit)
    if declared.kind is None:
        return point
    if declared.kind is Kind.BOOL and point.kind is Kind.NUMBER and point.value in (0, 1):
        return point._replace(kind=Kind.BOOL)
    return of_kind(point, declared.kind)

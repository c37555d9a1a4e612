"""Scoring telemetry: the models at work, and the way from unusual points to the database.

Points that pass no threshold, of a model with no excursion under way, cost no query: nearly all of
them. Everything else goes to the database, where the model's state is read under its lock, and
written with the anomaly and its event, before the batch counts as handled. So a batch that is
delivered again, here or to another worker, finds what it did already.

That no excursion is under way is believed for TRUST_S. If another worker has begun one since, on
the same shard, its calm points are counted that much later; nothing is said twice.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID, uuid5

from libs.common.clock import Clock
from libs.common.errors import Unavailable
from libs.common.events.ingest import TelemetryReceived
from libs.common.events.ml import AnomalyDetected
from libs.common.historian.writer import Columns, as_datetime
from services.ml.domain.excursion import Excursion, Scored, State, anomaly_id, follow
from services.ml.domain.model import Model
from services.ml.domain.robust_zscore import score_of
from services.ml.domain.watch import Candidate, Watch
from services.ml.store.definitions import Definitions
from services.ml.store.excursions import Excursions, Progress

TRUST_S = 1.0
ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class _Unusual:
    """A model, and points of which some may matter to it."""

    candidate: Candidate
    scored: Scored

    @property
    def model(self) -> Model:
        return self.candidate.watched.model


class Scoring:
    """Scores points by all tenants' models in one worker."""

    def __init__(self, definitions: Definitions, excursions: Excursions, clock: Clock) -> None:
        self._definitions = definitions
        self._excursions = excursions
        self._clock = clock
        self._watch = Watch()
        self._changing = asyncio.Lock()

    # --- models

    async def refresh(self) -> None:
        """Bring all models up to date."""
        async with self._changing:
            known = self._watch.versions()
            current = await self._definitions.versions()
            await self._reload([m for m in known | current if known.get(m) != current.get(m)])

    async def refresh_models(self, model_ids: Sequence[UUID]) -> None:
        """Bring these models up to date."""
        async with self._changing:
            await self._reload(model_ids)

    async def _reload(self, model_ids: Sequence[UUID]) -> None:
        # Under the lock, or an older reading could overtake a newer one.
        if not model_ids:
            return
        models = {model.id: model for model in await self._definitions.models(model_ids)}
        for model_id in model_ids:
            model = models.get(model_id)
            if model is None:
                self._watch.drop(model_id)
            else:
                self._watch.put(model)

    # --- telemetry

    async def score(self, batches: Sequence[TelemetryReceived]) -> None:
        """Score batches in their order; what came of them is committed when this returns.

        Raises what is transient; then nothing was done.
        """
        columns = Columns.of(batches)
        for _ in range(ATTEMPTS):
            candidates = self._watch.candidates(
                columns.series, columns.ts, columns.values, columns.quality
            )
            unusual = [found for c in candidates if (found := self._look_at(c)) is not None]
            if not unusual or await self._write(unusual):
                return
        raise Unavailable("models change faster than this batch can be scored")

    def _look_at(self, candidate: Candidate) -> _Unusual | None:
        """Return what must go to the database; None if it can be told from memory that nothing must."""
        watched = candidate.watched
        z = watched.model.learnt.z(candidate.values)
        now = asyncio.get_running_loop().time()
        if (
            watched.state is not None
            and watched.state.excursion is None
            and watched.trusted_until > now
            and not bool((z > watched.model.threshold).any())
        ):
            newest = int(candidate.ts.max())
            if watched.state.last_ts is None or watched.state.last_ts < newest:
                watched.state = replace(watched.state, last_ts=newest)
            return None
        scored = Scored(candidate.ts.tolist(), candidate.values.tolist(), z.tolist())
        return _Unusual(candidate, scored)

    async def _write(self, unusual: Sequence[_Unusual]) -> bool:
        """Commit what came of the points; False if a model has changed: then nothing was done."""
        asked = asyncio.get_running_loop().time()
        progress: list[Progress] = []
        now = self._clock.now()
        models = [one.model for one in unusual]
        async with self._excursions.begin({model.tenant_id for model in models}) as checkpoint:
            states = await checkpoint.states(models)
            outdated = [model.id for model in models if model.id not in states]
            if not outdated:
                for one in unusual:
                    written = states[one.model.id]
                    begun = _newest(written, one.candidate.watched.state)
                    state, touched = follow(
                        begun,
                        one.scored,
                        threshold=one.model.threshold,
                        calm_points=one.model.calm_points,
                    )
                    progress.append(Progress(one.model, state, touched))
                    for excursion in touched:
                        if written.excursion is None or (
                            written.excursion.began_at != excursion.began_at
                        ):
                            checkpoint.emit(_detected(one.model, excursion, now))
                mattered = [p for p in progress if p.touched]
                if mattered:
                    await checkpoint.save(mattered, now=now)
        if outdated:
            await self.refresh_models(outdated)
            return False
        for one, done in zip(unusual, progress, strict=True):
            one.candidate.watched.state = done.state
            one.candidate.watched.trusted_until = asked + TRUST_S
        return True


def _newest(written: State, held: State | None) -> State:
    """Return the written state, up to the newest point that was looked at since."""
    times = [s.last_ts for s in (written, held) if s is not None and s.last_ts is not None]
    return replace(written, last_ts=max(times, default=None))


def _detected(model: Model, excursion: Excursion, now: datetime) -> AnomalyDetected:
    found = anomaly_id(model.id, excursion.began_at)
    return AnomalyDetected(
        id=uuid5(found, AnomalyDetected.type),
        tenant_id=model.tenant_id,
        at=now,
        model_id=model.id,
        anomaly_id=found,
        device_id=model.device_id,
        metric=model.metric,
        score=score_of(excursion.z, model.threshold),
        value=excursion.value,
        expected=model.learnt.median,
        ts=as_datetime(excursion.began_at),
    )

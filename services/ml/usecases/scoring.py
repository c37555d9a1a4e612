"""Scoring telemetry: the models at work, and the way from unusual points to the database.

Points that pass no threshold, of a model with no excursion under way, cost no query: nearly all of
them. Everything else goes to the database, where the model's state is read under its lock, and
written with the anomaly and its event, before the batch counts as handled. So a batch that is
delivered again, here or to another worker, finds what it did already.

That no excursion is under way is believed as long as the worker owns the shard of the points
(libs.common.shards).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid5

from libs.common.clock import Clock
from libs.common.errors import Unavailable
from libs.common.events.ingest import TelemetryReceived
from libs.common.events.ml import AnomalyDetected
from libs.common.historian.writer import Columns, as_datetime
from libs.common.shards import Shards
from services.ml.domain.excursion import Excursion, Scored, State, anomaly_id, follow, later
from services.ml.domain.model import Model
from services.ml.domain.robust_zscore import score_of
from services.ml.domain.watch import Candidate, Watch, Watched
from services.ml.store.definitions import Definitions
from services.ml.store.excursions import Excursions, Progress

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

    def __init__(
        self,
        definitions: Definitions,
        excursions: Excursions,
        shards: Shards,
        clock: Clock,
        *,
        lateness: timedelta,
    ) -> None:
        self._definitions = definitions
        self._excursions = excursions
        self._shards = shards
        self._clock = clock
        self._watch = Watch(lateness)
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

        Raises what is transient; then nothing of the shard at hand was done.
        """
        by_shard: dict[int, list[TelemetryReceived]] = {}
        for batch in batches:
            by_shard.setdefault(batch.shard, []).append(batch)
        for shard, of_shard in by_shard.items():
            async with self._shards.working[shard]:
                await self._score(shard, Columns.of(of_shard))

    async def close(self) -> None:
        """Give the shards up, so that the next worker need not wait for them."""
        await self._shards.release()

    async def _score(self, shard: int, columns: Columns) -> None:
        for _ in range(ATTEMPTS):
            candidates = self._watch.candidates(
                columns.series, columns.ts, columns.values, columns.quality, columns.received
            )
            if not candidates:
                return
            if not await self._shards.own(shard):
                self._watch.forget(shard)
                continue  # models may have come while we waited
            unusual = [found for c in candidates if (found := self._look_at(shard, c)) is not None]
            if not unusual or await self._write(shard, unusual):
                return
        raise Unavailable("models or workers change faster than this batch can be scored")

    def _look_at(self, shard: int, candidate: Candidate) -> _Unusual | None:
        """Return what must go to the database; None if it can be told from memory that nothing must."""
        watched = candidate.watched
        z = watched.model.learnt.z(candidate.values)
        if (
            watched.state is not None
            and watched.state.excursion is None
            and watched.shard == shard
            and not bool((z > watched.model.threshold).any())
        ):
            newest = State(last_at=int(candidate.at[-1]), last_ts=int(candidate.ts[-1]))
            watched.state = later(watched.state, newest)
            return None
        scored = Scored(
            candidate.at.tolist(), candidate.ts.tolist(), candidate.values.tolist(), z.tolist()
        )
        return _Unusual(candidate, scored)

    async def _write(self, shard: int, unusual: Sequence[_Unusual]) -> bool:
        """Commit what came of the points.

        False if the shard was lost or a model has changed: then nothing was done.
        """
        progress: list[Progress] = []
        now = self._clock.now()
        models = [one.model for one in unusual]
        async with self._excursions.begin({model.tenant_id for model in models}) as checkpoint:
            if not await self._shards.holds(checkpoint.connection, shard):
                return False
            states = await checkpoint.states(models)
            outdated = [model.id for model in models if model.id not in states]
            if not outdated:
                for one in unusual:
                    written = states[one.model.id]
                    begun = _newest(written, one.candidate.watched, shard)
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
            one.candidate.watched.shard = shard
        return True


def _newest(written: State, watched: Watched, shard: int) -> State:
    """Return the written state, up to the newest point that was looked at since."""
    held = watched.state if watched.shard == shard else None
    return written if held is None else later(written, held)


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

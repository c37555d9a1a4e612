"""Evaluating telemetry: the rules in force, their states in memory, and the way to the database.

A worker keeps in memory how far each rule has got, and writes it only when a firing or a pending
condition begins or ends: in one transaction with the events, before the batch counts as handled.
So a batch that is delivered again, here or to another worker, finds what it did already.

A state in memory holds as long as the worker owns the shard of its points (libs.common.shards).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import structlog

from libs.common.bus.outcome import is_transient
from libs.common.clock import Clock
from libs.common.errors import Unavailable
from libs.common.events.base import Event
from libs.common.events.ingest import TelemetryReceived
from libs.common.historian.writer import Columns, as_datetime
from libs.common.shards import Shards
from services.rules.domain.firing import Cleared, Fired, Outcome, State
from services.rules.domain.watch import Candidate, Held, Watch
from services.rules.store.checkpoints import Checkpoints, Progress
from services.rules.store.definitions import Definitions
from services.rules.usecases.events import rule_cleared, rule_triggered

log = structlog.get_logger(__name__)

ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class _Step:
    """What some points do to a rule."""

    candidate: Candidate
    held: Held
    state: State
    outcomes: list[Outcome]

    @property
    def matters(self) -> bool:
        """Whether it must be written before the points count as handled."""
        return bool(self.outcomes) or self.state.differs_from(self.held.written)


class Evaluation:
    """Evaluates all tenants' rules in one worker."""

    def __init__(
        self,
        definitions: Definitions,
        checkpoints: Checkpoints,
        shards: Shards,
        clock: Clock,
        *,
        lateness: timedelta,
    ) -> None:
        self._definitions = definitions
        self._checkpoints = checkpoints
        self._shards = shards
        self._clock = clock
        self._watch = Watch(lateness)
        self._changing = asyncio.Lock()

    # --- definitions

    async def refresh(self) -> None:
        """Bring all definitions up to date."""
        async with self._changing:
            known = self._watch.versions()
            current = await self._definitions.versions()
            await self._reload(
                [
                    rule_id
                    for rule_id in known | current
                    if known.get(rule_id) != current.get(rule_id)
                ]
            )
        self._watch.forget_absent()

    async def refresh_rules(self, rule_ids: Sequence[UUID]) -> None:
        """Bring the definitions of these rules up to date."""
        async with self._changing:
            await self._reload(rule_ids)

    async def _reload(self, rule_ids: Sequence[UUID]) -> None:
        # Under the lock, or an older reading could overtake a newer one.
        if not rule_ids:
            return
        rules = {rule.id: rule for rule in await self._definitions.enabled(rule_ids)}
        for rule_id in rule_ids:
            rule = rules.get(rule_id)
            if rule is None:
                self._watch.drop(rule_id)
            else:
                self._watch.put(rule)

    # --- telemetry

    async def evaluate(self, batches: Sequence[TelemetryReceived]) -> None:
        """Evaluate batches in their order; what came of them is committed when this returns.

        Raises what is transient; then nothing of the shard at hand was done.
        """
        by_shard: dict[int, list[TelemetryReceived]] = {}
        for batch in batches:
            by_shard.setdefault(batch.shard, []).append(batch)
        for shard, of_shard in by_shard.items():
            async with self._shards.working[shard]:
                await self._evaluate(shard, Columns.of(of_shard))

    async def _evaluate(self, shard: int, columns: Columns) -> None:
        for _ in range(ATTEMPTS):
            await self._describe(columns)
            if not self._watch.concerns(columns.series):
                return
            if not await self._shards.own(shard):
                self._forget(shard)
            # Rules may have come while we waited.
            if self._watch.undescribed(columns.series):
                continue
            candidates = self._watch.candidates(
                columns.series, columns.ts, columns.values, columns.quality, columns.received
            )
            held = await self._hold(shard, candidates)
            steps = [_step(*pair) for pair in zip(candidates, held, strict=True)]
            if await self._write(shard, [step for step in steps if step.matters]):
                for step in steps:
                    step.held.state = step.state
                return
        raise Unavailable("rules or workers change faster than this batch can be evaluated")

    async def _describe(self, columns: Columns) -> None:
        numbers = self._watch.undescribed(columns.series)
        if numbers:
            found = await self._definitions.describe_series(numbers)
            self._watch.describe(numbers, found)

    def _forget(self, shard: int) -> None:
        for watched in self._watch.all_watched():
            for device_id in [d for d, held in watched.held.items() if held.shard == shard]:
                del watched.held[device_id]

    async def _hold(self, shard: int, candidates: Sequence[Candidate]) -> list[Held]:
        """Return how far each has got; read from the database what is not in memory."""
        held = [candidate.watched.held.get(candidate.device_id) for candidate in candidates]
        # (One of another shard is from before the number of shards was changed.)
        missing = [
            candidate
            for candidate, known in zip(candidates, held, strict=True)
            if known is None or known.shard != shard
        ]
        if missing:
            states = await self._checkpoints.states(
                [(candidate.watched.rule, candidate.device_id) for candidate in missing]
            )
            for candidate in missing:
                key = (candidate.watched.rule.id, candidate.device_id)
                state = states.get(key, State())
                candidate.watched.held[candidate.device_id] = Held(shard, state, written=state)
            return [candidate.watched.held[candidate.device_id] for candidate in candidates]
        return [known for known in held if known is not None]

    async def _write(self, shard: int, steps: Sequence[_Step]) -> bool:
        """Commit what matters; False if the shard was lost or a rule changed: then nothing was done."""
        if not steps:
            return True
        rules = {step.candidate.watched.rule.id: step.candidate.watched.rule for step in steps}
        progress = [
            Progress(step.candidate.watched.rule, step.candidate.device_id, step.state)
            for step in steps
        ]
        events = self._events(steps)
        outdated: list[UUID] = []
        async with self._checkpoints.begin(
            {rule.tenant_id for rule in rules.values()}
        ) as checkpoint:
            owns = await self._shards.holds(checkpoint.connection, shard)
            if owns:
                outdated = await checkpoint.outdated(rules.values())
                if not outdated:
                    await checkpoint.save(progress)
                    for event in events:
                        checkpoint.emit(event)
        if not owns:
            self._forget(shard)
            return False
        if outdated:
            await self.refresh_rules(outdated)
            return False
        for step in steps:
            step.held.written = step.state
        return True

    def _events(self, steps: Sequence[_Step]) -> list[Event]:
        now = self._clock.now()
        happened: list[tuple[int, Event]] = []
        for step in steps:
            rule, device_id = step.candidate.watched.rule, step.candidate.device_id
            for outcome in step.outcomes:
                ts = as_datetime(outcome.ts)
                match outcome:
                    case Fired(ts=fired_at, value=value):
                        event: Event = rule_triggered(
                            rule, device_id, fired_at, ts=ts, value=value, at=now
                        )
                    case Cleared(fired_at=fired_at, value=value):
                        event = rule_cleared(
                            rule, device_id, fired_at,
                            reason="recovered", ts=ts, value=value, at=now,
                        )  # fmt: skip
                happened.append((outcome.at, event))
        happened.sort(key=lambda pair: pair[0])
        return [event for _, event in happened]

    # --- what else is worth keeping

    async def checkpoint(self) -> None:
        """Write up to where points were looked at, so that late points stay late after a restart."""
        for shard in list(self._shards.working):
            async with self._shards.working[shard]:
                await self._checkpoint(shard)

    async def _checkpoint(self, shard: int) -> None:
        moved = [
            (watched.rule, device_id, held, held.state)
            for watched in self._watch.all_watched()
            for device_id, held in watched.held.items()
            if held.shard == shard and held.state != held.written
        ]
        if not moved:
            return
        async with self._checkpoints.begin({rule.tenant_id for rule, *_ in moved}) as checkpoint:
            if not await self._shards.holds(checkpoint.connection, shard):
                return
            outdated = set(await checkpoint.outdated(rule for rule, *_ in moved))
            await checkpoint.save(
                [
                    Progress(rule, device_id, state)
                    for rule, device_id, _, state in moved
                    if rule.id not in outdated
                ]
            )
        for _, _, held, state in moved:
            held.written = state

    async def close(self) -> None:
        """Give the shards up, so that the next worker need not wait for them."""
        try:
            await self.checkpoint()
        except Exception as error:  # looked at: what was not noted is looked at again
            if not is_transient(error):
                raise
            log.warning("how far points were looked at is not noted", error=repr(error))
        await self._shards.release()


def _step(candidate: Candidate, held: Held) -> _Step:
    state, outcomes = candidate.watched.rule.evaluate(held.state, candidate.points)
    return _Step(candidate, held, state, outcomes)

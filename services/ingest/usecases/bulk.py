"""Many devices at once: a sheet read into the registry, and the registry written as a sheet."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

from libs.common.db.acting import is_limited
from libs.common.db.transactions import Transactions
from libs.common.places import whole_tenant
from services.ingest.domain.attribute import Scope
from services.ingest.domain.credential import Credential, CredentialKind
from services.ingest.domain.device import Device
from services.ingest.domain.group import DEEPEST, MOST_GROUPS, Group, placed_below
from services.ingest.domain.search import Wanted
from services.ingest.domain.sheet import COLUMNS, WRITTEN_ONLY, Sheet, SheetRow, read_sheet, written
from services.ingest.domain.token import hash_token, new_token
from services.ingest.store.store import IngestStore
from services.ingest.usecases.devices import check_room, new_device, say_count, say_created

AT_ONCE = 1_000
"""Devices written, or read, with one statement."""

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a row."""

    line: int
    name: str
    device_id: UUID | None = None
    token: str | None = None
    error: str | None = None


class Tree:
    """The groups of a tenant by the names on the way to them, and those that a sheet adds."""

    def __init__(self, store: IngestStore, at: datetime) -> None:
        self._store = store
        self._at = at
        self._groups: dict[Path, Group] = {}
        self._new: list[Group] = []
        self._beyond = 0

    async def read(self) -> None:
        """Read what is there. Nobody else changes the tree until the transaction ends."""
        await self._store.groups.lock()
        groups = await self._store.groups.all()
        async with whole_tenant(self._store.session):
            self._beyond = await self._store.groups.count() - len(groups)
        paths = _paths(groups)
        ambiguous = {path for path, count in Counter(paths.values()).items() if count > 1}
        self._groups = {
            paths[group.id]: group for group in groups if paths[group.id] not in ambiguous
        }

    def is_in_reach(self, path: Path) -> bool:
        """Whether the caller may have a device there: one who is limited, below what they see."""
        return not is_limited() or path[:1] in self._groups

    def has_room_for(self, path: Path) -> bool:
        """Whether a group could be there."""
        missing = sum(path[:levels] not in self._groups for levels in range(1, len(path) + 1))
        return len(path) <= DEEPEST and len(self._groups) + self._beyond + missing <= MOST_GROUPS

    def grow(self, path: Path) -> None:
        """Have the groups on the way there, which is known to be possible."""
        for levels in range(1, len(path) + 1):
            part = path[:levels]
            if part not in self._groups:
                fresh = Group(uuid4(), None, part[-1], "group", (), self._at, self._at, 1)
                group = placed_below(fresh, self._groups.get(part[:-1]), height=1)
                self._groups[part] = group
                self._new.append(group)

    async def write(self) -> None:
        """Keep the groups that were added."""
        await self._store.groups.add_many(self._new)
        self._new = []

    def ids(self, path: Path) -> tuple[UUID, ...]:
        """Return the ids on the way to a group that is there."""
        return self._groups[path].path if path else ()


def _paths(groups: Iterable[Group]) -> dict[UUID, Path]:
    """Return the names on the way to each group of a tree, in which parents stand first.

    Who is limited to some groups does not see what these are below: to them the way begins there.
    """
    paths: dict[UUID, Path] = {}
    for group in groups:
        above = paths.get(group.parent_id, ()) if group.parent_id is not None else ()
        paths[group.id] = (*above, group.name)
    return paths


async def import_devices(
    store: IngestStore, content: bytes, *, dry_run: bool, most: int, at: datetime
) -> list[Imported]:
    """Register the devices of a sheet; what is wrong with a row is said of it, the others stand.

    Groups that are missing are made. Returns what became of each row, in order, with the devices'
    tokens, which are shown this once; of a dry run what would become of it.
    """
    sheet = await asyncio.to_thread(read_sheet, content)
    outcome = {line: Imported(line, name, error=why) for line, (name, why) in sheet.errors.items()}
    profiles = await store.profiles.ids_by_name()
    tree = Tree(store, at)
    await tree.read()
    await store.devices.lock()
    rows = []
    for row, error in await _judged(store, sheet, profiles, tree):
        if error is None:
            rows.append(row)
            outcome[row.line] = Imported(row.line, row.name)
        else:
            outcome[row.line] = Imported(row.line, row.name, error=error)
    count = await check_room(store, len(rows), most)
    if not dry_run and rows:
        say_count(store, count, at=at)
    if not dry_run:
        await tree.write()
        for start in range(0, len(rows), AT_ONCE):
            for made in await _register(store, rows[start : start + AT_ONCE], profiles, tree, at):
                outcome[made.line] = made
    return [outcome[line] for line in sorted(outcome)]


async def _judged(
    store: IngestStore, sheet: Sheet, profiles: dict[str, UUID], tree: Tree
) -> list[tuple[SheetRow, str | None]]:
    async with whole_tenant(store.session):
        names, serials = await store.devices.taken(
            [row.name for row in sheet.rows], [row.serial for row in sheet.rows if row.serial]
        )

    def fault(row: SheetRow) -> str | None:
        if row.name in names:
            return "there is a device of this name already"
        if row.serial in serials:
            return "there is a device with this serial number already"
        if row.profile is not None and row.profile not in profiles:
            return "there is no profile of this name"
        if not tree.is_in_reach(row.group):
            return "it is in none of the groups that you are limited to"
        if not tree.has_room_for(row.group):
            return f"groups are {DEEPEST} levels deep at most, and {MOST_GROUPS} of them"
        tree.grow(row.group)
        return None

    return [(row, fault(row)) for row in sheet.rows]


async def _register(
    store: IngestStore,
    rows: list[SheetRow],
    profiles: dict[str, UUID],
    tree: Tree,
    at: datetime,
) -> list[Imported]:
    devices: list[Device] = []
    made: list[Imported] = []
    credentials: list[tuple[Credential, bytes]] = []
    for row in rows:
        path = tree.ids(row.group)
        device = new_device(
            store.tenant_id,
            uuid4(),
            at=at,
            name=row.name,
            type=row.type,
            description=row.description,
            serial=row.serial,
            profile_id=None if row.profile is None else profiles[row.profile],
            group_id=path[-1] if path else None,
            tags=row.tags,
        )
        token = new_token()
        devices.append(device)
        credentials.append(
            (
                Credential(uuid4(), device.id, CredentialKind.TOKEN, None, None, at, None),
                hash_token(token),
            )
        )
        made.append(Imported(row.line, row.name, device.id, token))
        say_created(store, device, path, at=at)
    attributes = {
        device.id: row.attributes
        for device, row in zip(devices, rows, strict=True)
        if row.attributes
    }
    await store.devices.add_many(devices, attributes)
    await store.credentials.add_many(credentials)
    await store.attributes.add_many(attributes, Scope.SERVER, at)
    return made


def outcome_sheet(imported: list[Imported]) -> str:
    """Return what became of an import as a sheet."""
    return written(
        [
            ("line", "name", "device_id", "username", "token", "error"),
            *(
                (
                    str(row.line),
                    row.name,
                    str(row.device_id or ""),
                    str(row.device_id or ""),
                    row.token or "",
                    row.error or "",
                )
                for row in imported
            ),
        ]
    )


async def export_devices(
    transactions: Transactions[IngestStore], tenant_id: UUID
) -> AsyncIterator[str]:
    """Write the tenant's devices as a sheet that can be imported again, oldest first, part by part.

    Each part is as it is when it is written: a transaction does not stay open for a slow reader. But a
    profile and a group have one name in all of it.
    """
    yield written([(*COLUMNS, *WRITTEN_ONLY)])
    wanted = Wanted()
    profiles: dict[UUID | None, str] = {None: ""}
    groups: dict[UUID | None, str] = {None: ""}
    while True:
        async with transactions.begin(tenant_id) as store:
            devices = await store.devices.find(wanted, AT_ONCE)
            if not profiles.keys() >= {device.profile_id for device in devices}:
                for name, profile_id in (await store.profiles.ids_by_name()).items():
                    profiles.setdefault(profile_id, name)
            if not groups.keys() >= {device.group_id for device in devices}:
                for group_id, path in _paths(await store.groups.all()).items():
                    groups.setdefault(group_id, "/".join(path))
            attributes = await store.attributes.of_devices([d.id for d in devices], Scope.SERVER)
        yield written(
            (
                device.name,
                device.type,
                device.serial or "",
                device.description,
                profiles.get(device.profile_id, ""),
                groups.get(device.group_id, ""),
                ";".join(device.tags),
                json.dumps(attributes[device.id]) if device.id in attributes else "",
                str(device.id),
                device.status.value,
                device.last_seen_at.isoformat() if device.last_seen_at else "",
                device.protocol or "",
                device.payload_format or "",
            )
            for device in devices
        )
        if len(devices) < AT_ONCE:
            return
        wanted = wanted.behind(wanted.place_of(devices[-1]))

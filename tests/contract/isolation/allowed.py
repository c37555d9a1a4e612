"""What may stand outside the rules that keep tenants apart, each with its reason.

The catalogue's checks read it. Whoever adds a line here says in a sentence why no tenant can see
another through it; a line that nothing in the database answers to is reported as well.
"""

from dataclasses import dataclass

from libs.common.db.roles import BUS, HISTORIAN_WRITER, LOOKUP, OBSERVER, OWNER, SERVICES
from libs.common.migrate import SCHEMAS, SECTIONS

OUR_SCHEMAS = frozenset(SCHEMAS.get(section, section) for section in SECTIONS)

PUBLIC = "PUBLIC"
RW = frozenset(f"{service}_rw" for service in SERVICES)


@dataclass(frozen=True, slots=True)
class Definer:
    """A function that runs with its owner's rights, and who may call it."""

    owner: str
    callers: frozenset[str]
    reason: str


@dataclass(frozen=True, slots=True)
class Grant:
    """What a role may do with a table: `SELECT(a, b) DELETE`, and why."""

    privileges: str
    reason: str


def _callers(*roles: str) -> frozenset[str]:
    return frozenset(roles)


OPEN_TABLES: dict[str, str] = {
    **{
        f"{schema}.alembic_version": "which migrations ran; granted to nobody"
        for schema in OUR_SCHEMAS
    },
    **{
        f"{service}.outbox": "events on their way out: its service can only insert, the relay crosses"
        for service in SERVICES
    },
    **{f"{service}.inbox": "ids of handled events, of no tenant" for service in SERVICES},
    "sec.clock": "by how much time is moved, of no tenant",
    "bus.log": "the edge's bus itself: read by bus_rw alone, written through bus.append",
    "bus.subscribers": "how far each subscription has read, of no tenant",
    "bus.retries": "the bus's own: bus_rw alone, and the operators",
    "bus.dead_letters": "the bus's own: bus_rw alone, and the operators",
    "historian.tenant": "numbers of tenants: read by functions and by retention's engine alone",
    "gateway.signing_keys": "the installation's own keys, of no tenant",
    "tenancy.plans": "the installation's own, of no tenant",
    "gateway.challenges": "what authenticators are asked, before it is known who answers",
    "rules.shards": "which worker evaluates which shard, of no tenant",
    "ml.shards": "which worker scores which shard, of no tenant",
    "tenancy.user_tokens": "of users, who are nobody's; written and found by functions, by a hash",
    "tenancy.familiar_origins": "of users, who are nobody's: hashes, for the engine alone",
    "tenancy.account_requests": "what strangers ask for, of no tenant yet; for the engine alone",
    "ingest.endpoints": "which processes devices connect to, of no tenant",
    "ingest.ledger_log": "counts of all tenants' points: the writer can only insert, the engine adds them up",
}
"""Tables without a tenant's policy. All others must have it."""

OTHER_POLICIES: dict[tuple[str, str], str] = {
    (
        "tenancy.users",
        "members_only",
    ): "a user is nobody's: a tenant sees those who are its members",
    ("tenancy.users", "by_function"): "users are written by the owner's functions alone",
    **{
        (
            f"tenancy.{table}",
            "members_only",
        ): "a user's own, whatever tenant they work for: reached by way of their memberships"
        for table in ("one_time_codes", "recovery_codes", "passkeys")
    },
    **{
        (
            f"ingest.{table}",
            "by_function",
        ): "the owner's function trims one tenant's, which it binds itself"
        for table in ("quarantine", "quarantine_overflow")
    },
    **{
        (
            f"historian.{table}",
            "access",
        ): "shared by its readers; the restrictive policy does the work"
        for table in ("points", "series", "texts")
    },
    (
        "historian.device_places",
        "reading",
    ): "shared by the historian's readers, for their own policies",
    (
        "historian.device_places",
        "access",
    ): "ingest keeps it, in the transaction that moves a device",
    (
        "historian.device_places",
        "by_function",
    ): "the owner's function forgets those of the bound tenants, who are no more",
}
"""Policies other than the two that `protect` makes."""

BEYOND_REACH: dict[str, str] = {
    "historian.device_places": "where devices are: the policies of reach themselves read it",
    "alerting.device_places": "as the historian's",
    "ingest.placements": "ids of devices that were moved, until that is said; no API reads it",
    "ingest.ledger_log": "counts of all tenants' points: no user's transaction reads it",
    "tenancy.memberships": "whom it limits: the groups' ids, and nothing of a device",
    "tenancy.api_keys": "as memberships",
}
"""Tables with something of devices in them that are shown to callers limited to some, or to nobody."""

FOREIGN_TENANCY: dict[str, str] = {
    "tenancy.users": "a person works for several tenants; the policy asks their memberships",
    **dict.fromkeys(
        ("tenancy.one_time_codes", "tenancy.recovery_codes", "tenancy.passkeys"),
        "belongs to a person; the policy asks their memberships",
    ),
}
"""Tables without a tenant's column that row-level security guards by other policies."""

DEFINERS: dict[str, Definer] = {
    "bus.append(text[],uuid[],text[],text[],timestamp with time zone[],uuid[],integer[],text[],bytea[])": Definer(
        OWNER,
        RW | {BUS, "retention_engine"},
        "appends to the log in its order; services speak for every tenant",
    ),
    "bus.end_partition(bigint)": Definer(OWNER, _callers(BUS), "ends a partition of the log"),
    "bus.drop_read(bigint)": Definer(OWNER, _callers(BUS), "drops the log's partitions"),
    "historian.tenant_numbers()": Definer(
        OWNER,
        _callers("analytics_rw", "ml_rw", "rules_rw", "retention_rw", "ingest_rw", OBSERVER),
        "the policies' own: the bound tenants' numbers, and no others",
    ),
    "historian.tenant_number(uuid)": Definer(
        OWNER, _callers("ingest_rw", "ingest_engine"), "gives a tenant its number at first sight"
    ),
    "historian.number_of(uuid)": Definer(
        OWNER,
        _callers("analytics_rw", "ml_rw", "rules_rw", "retention_rw"),
        "a number for the reader's predicate; tells that a tenant has one, and nothing of it",
    ),
    "historian.ensure_days(date,date)": Definer(
        OWNER, _callers(HISTORIAN_WRITER), "makes partitions; reads no point out"
    ),
    "historian.days()": Definer(OWNER, _callers(HISTORIAN_WRITER), "days, of no tenant"),
    "historian.day_sizes()": Definer(
        OWNER, _callers("retention_engine"), "how full a day is, over all tenants"
    ),
    "historian.drop_day(date)": Definer(
        OWNER, _callers("retention_engine"), "a day of all tenants at its end"
    ),
    "historian.delete_expired(uuid,timestamp with time zone,integer)": Definer(
        OWNER, _callers("retention_engine"), "erases one tenant's points, named in the call"
    ),
    "historian.count_expired(uuid,timestamp with time zone,integer)": Definer(
        OWNER, _callers("retention_engine"), "counts what would be erased"
    ),
    "historian.close_tenants()": Definer(
        OWNER, _callers("retention_rw"), "closes the bound tenants' books, and no others"
    ),
    "historian.forget_tenants(timestamp with time zone)": Definer(
        OWNER, _callers("retention_engine"), "forgets numbers of tenants long gone; says how many"
    ),
    "historian.describe_series(integer[])": Definer(
        LOOKUP,
        _callers(
            "rules_engine",
            "ml_engine",
            "analytics_engine",
            "gateway_engine",
            "ingest_engine",
            HISTORIAN_WRITER,
        ),
        "workers on batches of many tenants; no service calls it for a tenant",
    ),
    "historian.storage()": Definer(
        LOOKUP, _callers("ingest_engine"), "counts, for each tenant's own usage; no point's value"
    ),
    "historian.places_of(uuid,uuid[])": Definer(
        LOOKUP,
        _callers("gateway_engine"),
        "where devices are, for the live connections of callers who are limited to some groups",
    ),
    "historian.strays()": Definer(
        LOOKUP, _callers(HISTORIAN_WRITER, OBSERVER), "a count over all tenants, for an alarm"
    ),
    "historian.stray_days(integer)": Definer(
        LOOKUP, _callers(HISTORIAN_WRITER), "days of all tenants' points, to make partitions for"
    ),
    "gateway.session_of_refresh_token(bytea)": Definer(
        LOOKUP, _callers("gateway_engine"), "a refresh says no tenant; the hash is the secret"
    ),
    "gateway.tenant_of_pending_login(bytea)": Definer(
        LOOKUP, _callers("gateway_engine"), "a second step says no tenant; the hash is the secret"
    ),
    "ingest.device_of_token(bytea)": Definer(
        LOOKUP, _callers("ingest_engine"), "a device says no tenant; the hash is the secret"
    ),
    "ingest.tenant_of_device(uuid)": Definer(
        LOOKUP,
        _callers("ingest_engine"),
        "a broker vouches for the device and says no tenant; no service hands the answer out",
    ),
    "ingest.trim_quarantine(uuid,integer,bigint)": Definer(
        OWNER,
        _callers(HISTORIAN_WRITER),
        "deletes the oldest of one tenant's entries, named in the call; a count back",
    ),
    "ingest.device_of_credential(text,bytea)": Definer(
        LOOKUP, _callers("ingest_engine"), "a device says no tenant; the hash is of a secret"
    ),
    "ingest.tenant_of_provisioning_key(bytea)": Definer(
        LOOKUP, _callers("ingest_engine"), "a device says no tenant; the hash is of the secret"
    ),
    "ingest.find_devices(uuid,jsonb,integer)": Definer(
        LOOKUP,
        _callers("ingest_rw"),
        "uses indexes that row-level security shuts out; of a tenant that the transaction is bound to",
    ),
    "ingest.devices_let_in(uuid[],uuid[],bytea[])": Definer(
        LOOKUP, _callers("ingest_engine"), "says which of the ids it is given are still let in"
    ),
    "tenancy.add_user(uuid,text,timestamp with time zone)": Definer(
        OWNER, _callers("tenancy_rw"), "an id back, whether the address was known or not"
    ),
    "tenancy.add_first_admin(uuid,text,text,timestamp with time zone)": Definer(
        OWNER, _callers("tenancy_rw"), "does nothing once there is a user"
    ),
    "tenancy.bar_user(uuid,timestamp with time zone)": Definer(
        OWNER, _callers("tenancy_rw"), "for the platform's admins, whose route checks it"
    ),
    "tenancy.forget_users(uuid[])": Definer(
        OWNER, _callers("tenancy_rw"), "removes only who belongs to no tenant; says nothing"
    ),
    "tenancy.set_password(uuid,text,text,timestamp with time zone)": Definer(
        OWNER,
        _callers("tenancy_rw"),
        "sets the password of who knows the former one's hash; yes or no back",
    ),
    "tenancy.keep_user_token(bytea,uuid,text,timestamp with time zone)": Definer(
        OWNER, _callers("tenancy_rw"), "keeps the hash of what goes to the user's own address"
    ),
    "tenancy.use_user_token(bytea,text,timestamp with time zone)": Definer(
        OWNER, _callers("tenancy_rw"), "the hash is the secret; an id back"
    ),
    "tenancy.user_of_token(bytea)": Definer(
        LOOKUP,
        _callers("tenancy_engine"),
        "who forgot a password says no tenant; the hash is the secret",
    ),
    "tenancy.registration_of_slug(text)": Definer(
        LOOKUP,
        _callers("tenancy_engine"),
        "who registers is in no tenant; nobody is told the answer",
    ),
    "tenancy.registration_of_token(bytea)": Definer(
        LOOKUP, _callers("tenancy_engine"), "who registered says no tenant; the hash is the secret"
    ),
    "tenancy.invitation_of_token(bytea)": Definer(
        LOOKUP, _callers("tenancy_engine"), "who accepts says no tenant; the hash is the secret"
    ),
    "tenancy.api_key_of_hash(bytea)": Definer(
        LOOKUP, _callers("tenancy_engine"), "who shows a key says no tenant; the hash is the secret"
    ),
    "tenancy.providers_of_slug(text)": Definer(
        LOOKUP,
        _callers("tenancy_engine"),
        "who is to log in names the tenant; names and kinds of its providers are public",
    ),
    "tenancy.login_terms(uuid)": Definer(
        LOOKUP, _callers("tenancy_engine"), "a login takes what the user has and any tenant asks"
    ),
    "tenancy.user_of_passkey(bytea)": Definer(
        LOOKUP, _callers("tenancy_engine"), "a login by a passkey says nothing else"
    ),
    "tenancy.branding_of_slug(text)": Definer(
        LOOKUP, _callers("tenancy_engine"), "the page to log in at: what everybody may see"
    ),
    "tenancy.user_of_email(text)": Definer(
        LOOKUP, _callers("tenancy_engine"), "a login says no tenant"
    ),
    "tenancy.user_of_id(uuid)": Definer(
        LOOKUP, _callers("tenancy_engine"), "the refresh of a session says no tenant"
    ),
    "tenancy.memberships_of_user(uuid)": Definer(
        LOOKUP, _callers("tenancy_engine"), "which tenants a user may choose from at login"
    ),
    "tenancy.reach_of_user(uuid)": Definer(
        LOOKUP, _callers("tenancy_engine"), "as memberships_of_user"
    ),
    "tenancy.all_tenants(timestamp with time zone,uuid,integer)": Definer(
        LOOKUP, _callers("tenancy_engine"), "the platform's admins list the tenants"
    ),
}
"""SECURITY DEFINER functions, by signature, with exactly those who may call them."""

PLAIN_FUNCTIONS: dict[str, frozenset[str]] = {
    "sec.tenants()": _callers(PUBLIC),
    "sec.iiot_now()": _callers(PUBLIC),
    "sec.groups()": _callers(PUBLIC),
    "sec.actor()": _callers(PUBLIC),
    "sec.cut(jsonb)": _callers(PUBLIC),
    "sec.difference(jsonb,jsonb,text[],text[])": _callers(PUBLIC),
    "sec.key_of(jsonb,text[])": _callers(PUBLIC),
    "sec.shown(jsonb,text[],text[])": _callers(PUBLIC),
    **{f"{service}.note_changes()": _callers() for service in SERVICES},
    "historian.parts_before(timestamp with time zone)": _callers(),
    "ingest.term(uuid,text)": _callers(LOOKUP),
    "ingest.searched(text)": _callers("ingest_rw", LOOKUP),
    "ingest.index_devices(uuid[],uuid[])": _callers("ingest_rw"),
    "ingest.on_devices_added()": _callers(),
    "ingest.on_devices_to_index()": _callers(),
    "ingest.on_device_changed()": _callers(),
    "ingest.on_attributes_changed()": _callers(),
    "ingest.place_devices(uuid,uuid[])": _callers("ingest_rw"),
    "ingest.on_devices_to_place()": _callers(),
    "ingest.on_device_moved()": _callers(),
    "ingest.on_group_moved()": _callers(),
    "bus.make_room(bigint,bigint)": _callers(),
    "bus.read_partitions(bigint)": _callers(),
}
"""Functions that run with their caller's rights, and who may call them."""

TRIGGERS: dict[str, str] = {
    **dict.fromkeys(
        (
            "to_place on ingest.devices",
            "moved on ingest.devices",
            "moved on ingest.device_groups",
        ),
        "notes where the row's own devices are, as its caller",
    ),
    "added on ingest.devices": "gives the row's own device its row of contacts, as its caller",
    **dict.fromkeys(
        (
            "to_index on ingest.devices",
            "changed on ingest.devices",
            "added on ingest.device_attributes",
            "changed on ingest.device_attributes",
        ),
        "keeps what the row's own device is found by, as its caller",
    ),
}
"""Triggers, and why what they write is the row's tenant's."""

AUDITED = (
    "alerting.alert_notes",
    "alerting.alerts",
    "alerting.channels",
    "gateway.cors_origins",
    "gateway.rate_limit_policies",
    "ingest.claims",
    "ingest.commands",
    "ingest.connectors",
    "ingest.credentials",
    "ingest.device_attributes",
    "ingest.device_groups",
    "ingest.device_profiles",
    "ingest.devices",
    "ingest.gateway_devices",
    "ingest.gateways",
    "ingest.policies",
    "ingest.provisioning_keys",
    "ml.models",
    "retention.policies",
    "rules.rules",
    "tenancy.api_keys",
    "tenancy.brandings",
    "tenancy.identity_providers",
    "tenancy.invitations",
    "tenancy.login_policies",
    "tenancy.memberships",
    "tenancy.registration_policies",
    "tenancy.roles",
    "tenancy.tenants",
)
"""Tables of which it is noted what somebody changes (`audited` in `libs.common.db.ddl`)."""

TRIGGERS |= {
    f"audited_{operation} on {table}": "notes the row's own change, under its own tenant"
    for table in AUDITED
    for operation in ("insert", "update", "delete")
}

NOT_AUDITED: dict[str, str] = {
    **{
        f"{service}.changes": "the notes themselves, gone when their transaction commits"
        for service in SERVICES
    },
    **{
        f"{service}.idempotency_keys": "the answer to a change, which is recorded itself"
        for service in SERVICES
        if service not in {"gateway", "analytics"}
    },
    **dict.fromkeys(
        ("tenancy.audit_log", "tenancy.audit_heads"), "the trail itself: nobody changes it"
    ),
    **dict.fromkeys(
        ("tenancy.usage_days", "tenancy.usage_standing", "ingest.usage"),
        "what was used, and where that stands",
    ),
    **{
        f"{service}.quotas": "what the tenant's plan says, which tenancy records"
        for service in ("tenancy", "ingest", "rules")
    },
    "tenancy.registrations": "who is not known yet; that they joined is recorded",
    "tenancy.mails": "mail on its way, of changes that are recorded themselves",
    "tenancy.sign_ons": "logins under way at an identity provider",
    "tenancy.identities": "who a provider says somebody is, noted as they come in",
    "tenancy.removed_tenants": "a note that a tenant was removed, which is recorded as that",
    "tenancy.api_key_uses": "when a key was used last: no change of it",
    **{
        f"gateway.{table}": "the gateway says itself what becomes of sessions (`usecases.sessions`)"
        for table in ("sessions", "refresh_tokens", "tickets", "pending_logins")
    },
    **dict.fromkeys(
        ("ingest.contacts", "ingest.ledger", "ingest.mqtt_sessions", "ingest.oscore_sequences"),
        "what devices do, and the counts of it",
    ),
    "ingest.placements": "devices that were moved, which is recorded of them, until it is said",
    "ingest.command_steps": "what became of a command, which is recorded itself",
    "ingest.device_terms": "an index of devices and their attributes",
    "ingest.quarantine": "what devices sent; nobody changes it, and who empties it is not asked",
    "ingest.quarantine_overflow": "counts of what devices sent",
    **dict.fromkeys(
        ("ingest.tenants", "alerting.names", "alerting.device_places"),
        "what other services said, kept to be at hand",
    ),
    **dict.fromkeys(
        ("rules.rule_state", "ml.model_state", "ml.anomalies", "alerting.firings"),
        "what evaluation found and remembers",
    ),
    "alerting.alert_history": "the alert's own history, made of the changes that are recorded",
    "alerting.notifications": "what the alert and its channels make due",
    **dict.fromkeys(
        ("historian.points", "historian.texts", "historian.series"), "what devices measure"
    ),
}
"""Tenants' tables of which no change is noted, each with the reason why none must be."""

GRANTS: dict[tuple[str, str], Grant] = {
    (PUBLIC, "sec.clock"): Grant("SELECT", "timers read the time; it says nothing of a tenant"),
    # The historian is shared: its readers are under its policies, its writer cannot read.
    **{
        (f"{service}_rw", f"historian.{table}"): Grant("SELECT", "reads the bound tenants' points")
        for service in ("analytics", "ml", "rules", "retention", "ingest")
        for table in ("points", "texts", "series")
        if (service, table) != ("ingest", "series")
    },
    **{
        (f"{service}_rw", "historian.device_places"): Grant(
            "SELECT", "its policies of reach ask it"
        )
        for service in ("analytics", "ml", "rules", "retention")
    },
    ("ingest_engine", "ingest.placements"): Grant(
        "SELECT(tenant_id)", "of whose devices it is to be said where they are"
    ),
    ("ingest_rw", "ingest.placements_said"): Grant("USAGE", "numbers what it says; of no tenant"),
    ("ingest_rw", "historian.device_places"): Grant(
        "SELECT INSERT UPDATE DELETE", "keeps where devices are, in the transaction that moves them"
    ),
    ("ingest_rw", "historian.series"): Grant(
        "INSERT SELECT UPDATE(unit)",
        "a metric's first point names it, and the first that has a unit gives it that",
    ),
    **{
        (HISTORIAN_WRITER, f"historian.{table}"): Grant(
            "INSERT SELECT(series)",
            "every tenant's points, unread; counts, by series, which of those it wrote are new",
        )
        for table in ("points", "texts")
    },
    (HISTORIAN_WRITER, "ingest.ledger_log"): Grant("INSERT", "counts what it writes"),
    (HISTORIAN_WRITER, "ingest.quarantine"): Grant("INSERT", "what could not be stored"),
    (HISTORIAN_WRITER, "ingest.inbox"): Grant("SELECT INSERT", "marks batches with their rows"),
    ("retention_engine", "historian.tenant"): Grant("SELECT", "whose points to look for"),
    # The bus keeps its own books.
    (BUS, "bus.log"): Grant("SELECT", "delivers"),
    (BUS, "bus.position"): Grant("SELECT", "knows the end of the log"),
    (BUS, "bus.subscribers"): Grant("SELECT INSERT UPDATE DELETE", "the bus's own"),
    (BUS, "bus.retries"): Grant("SELECT INSERT UPDATE DELETE", "the bus's own"),
    (BUS, "bus.dead_letters"): Grant("SELECT INSERT UPDATE DELETE", "the bus's own"),
    # What SECURITY DEFINER look-ups read.
    **{
        (LOOKUP, table): Grant("SELECT", "read by look-ups before the tenant is known")
        for table in (
            "gateway.pending_logins",
            "gateway.refresh_tokens",
            "gateway.sessions",
            "historian.points",
            "historian.device_places",
            "historian.points_default",
            "historian.series",
            "historian.tenant",
            "historian.texts",
            "historian.texts_default",
            "ingest.contacts",
            "ingest.credentials",
            "ingest.device_groups",
            "ingest.device_profiles",
            "ingest.device_terms",
            "ingest.provisioning_keys",
            "ingest.devices",
            "ingest.tenants",
            "tenancy.api_keys",
            "tenancy.identity_providers",
            "tenancy.brandings",
            "tenancy.invitations",
            "tenancy.login_policies",
            "tenancy.memberships",
            "tenancy.registration_policies",
            "tenancy.registrations",
            "tenancy.one_time_codes",
            "tenancy.passkeys",
            "tenancy.recovery_codes",
            "tenancy.roles",
            "tenancy.tenants",
            "tenancy.user_tokens",
            "tenancy.users",
        )
    },
    # What a service must do across tenants, on the columns that takes.
    ("alerting_engine", "alerting.notifications"): Grant(
        "SELECT(tenant_id, id, seq, alert_id, channel_id, status, attempts, due_at, lease_token)"
        " UPDATE(status, attempts, due_at, lease_token)",
        "claims what is due; what is sent is read by the tenant's own transaction",
    ),
    ("alerting_engine", "alerting.firings"): Grant(
        "SELECT(triggered_at, cleared_at) DELETE", "forgets firings long over"
    ),
    ("gateway_engine", "gateway.sessions"): Grant(
        "SELECT(id, revoked_at, expires_at) DELETE", "catches up with revocations; cleans up"
    ),
    ("gateway_engine", "gateway.tickets"): Grant(
        "SELECT DELETE", "a ticket is taken before its tenant is known"
    ),
    ("gateway_engine", "gateway.rate_limit_policies"): Grant(
        "SELECT", "every replica counts against the limits of all tenants"
    ),
    ("gateway_engine", "gateway.cors_origins"): Grant(
        "SELECT", "a preflight does not say whose site it is"
    ),
    ("gateway_engine", "gateway.pending_logins"): Grant(
        "SELECT(expires_at) DELETE", "removes those that are too old"
    ),
    ("gateway_engine", "gateway.challenges"): Grant(
        "SELECT INSERT DELETE", "of no tenant: a challenge is taken before it is known who answers"
    ),
    ("rules_engine", "rules.rules"): Grant(
        "SELECT(tenant_id, id, name, type, device_id, metric, condition, hold, severity, enabled,"
        " version, created_at, updated_at)",
        "points of all tenants come in one stream",
    ),
    ("rules_engine", "rules.shards"): Grant("SELECT INSERT UPDATE", "claims shards"),
    ("ml_engine", "ml.shards"): Grant("SELECT INSERT UPDATE", "claims shards"),
    ("ingest_engine", "ingest.tenants"): Grant(
        "SELECT(tenant_id, status, said_at) DELETE",
        "forgets tenants long gone; whose connectors may run",
    ),
    ("ingest_engine", "ingest.mqtt_sessions"): Grant(
        "SELECT(tenant_id, device_id, expires_at) DELETE",
        "forgets the sessions of devices that stay away",
    ),
    ("tenancy_engine", "tenancy.sign_ons"): Grant(
        "SELECT(expires_at) DELETE", "removes those whose time is over"
    ),
    ("tenancy_engine", "tenancy.removed_tenants"): Grant(
        "SELECT(tenant_id, removed_at)", "finds whose removal is to be said again"
    ),
    ("tenancy_engine", "tenancy.tenants"): Grant(
        "SELECT(tenant_id, plan, plan_version, erased_from)",
        "finds who is to be told of a changed plan, and whose grace is over",
    ),
    ("tenancy_engine", "tenancy.plans"): Grant("SELECT(name, version)", "finds changed plans"),
    ("tenancy_engine", "tenancy.usage_standing"): Grant(
        "SELECT(tenant_id, resource, day, level)", "finds who has all of a daily quota again"
    ),
    ("tenancy_rw", "tenancy.plans"): Grant(
        "SELECT INSERT UPDATE DELETE", "of no tenant; the routes are the platform's admins'"
    ),
    ("tenancy_engine", "tenancy.registrations"): Grant(
        "SELECT(expires_at) DELETE", "forgets who registered and never came back"
    ),
    ("tenancy_engine", "tenancy.mails"): Grant(
        "SELECT(tenant_id, id, status, created_at, due_at, attempts) UPDATE(due_at, attempts) DELETE",
        "claims what is due; to whom and what about, its tenant's own transaction reads",
    ),
    ("tenancy_engine", "tenancy.user_tokens"): Grant(
        "SELECT(expires_at) DELETE", "forgets what nobody used"
    ),
    ("tenancy_engine", "tenancy.familiar_origins"): Grant(
        "SELECT INSERT UPDATE DELETE", "a login says no tenant"
    ),
    ("tenancy_engine", "tenancy.account_requests"): Grant(
        "SELECT INSERT UPDATE DELETE", "whoever registers or forgot a password says no tenant"
    ),
    ("ml_engine", "ml.models"): Grant("SELECT", "points of all tenants come in one stream"),
    ("ingest_engine", "ingest.devices"): Grant(
        "SELECT(tenant_id, id, endpoint_id, deleted_at)",
        "an endpoint that died leaves devices of all tenants; what was removed long ago is erased",
    ),
    ("ingest_engine", "ingest.contacts"): Grant(
        "SELECT(tenant_id, device_id, offline_due_at)", "finds who has been silent for too long"
    ),
    ("ingest_engine", "ingest.commands"): Grant(
        "SELECT(tenant_id, id, device_id, status, tried_at, due_at, expires_at, completed_at, attempts) DELETE",
        "finds what is to be sent or is overdue, forgets what is long over; what a command says,"
        " its tenant's own transaction reads",
    ),
    ("ingest_engine", "ingest.ledger"): Grant(
        "SELECT INSERT UPDATE DELETE", "adds up counts of all tenants' points; forgets old hours"
    ),
    ("ingest_engine", "ingest.usage"): Grant(
        "SELECT INSERT UPDATE DELETE", "adds up counts of all tenants' points, and tells them"
    ),
    ("ingest_engine", "ingest.ledger_log"): Grant(
        "SELECT DELETE", "adds up counts of all tenants' points"
    ),
    ("ingest_engine", "ingest.connectors"): Grant(
        "SELECT(tenant_id, id, is_enabled, version, runner_id, lease_until)"
        " UPDATE(runner_id, lease_until)",
        "which process runs which connector, of all tenants; what one is, its tenant's own transaction reads",
    ),
    # Tables of no tenant.
    ("ingest_rw", "ingest.endpoints"): Grant("SELECT INSERT UPDATE DELETE", "keeps leases"),
    ("gateway_rw", "gateway.signing_keys"): Grant("SELECT INSERT DELETE", "keeps its keys"),
    ("rules_rw", "rules.shards"): Grant("SELECT UPDATE", "fences off one that lost its shard"),
    ("ml_rw", "ml.shards"): Grant("SELECT UPDATE", "fences off one that lost its shard"),
    **{
        ("tenancy_rw", f"tenancy.{table}"): Grant(
            "SELECT INSERT UPDATE DELETE", "of members, by the policy; sealed, hashed or public"
        )
        for table in ("one_time_codes", "recovery_codes", "passkeys")
    },
    ("tenancy_rw", "tenancy.users"): Grant("SELECT(id, email)", "members, by the policy; no hash"),
}
"""What roles may do beyond a service's own tenant tables, exactly."""

for _service in SERVICES:
    _rw, _engine = f"{_service}_rw", f"{_service}_engine"
    GRANTS[_rw, f"{_service}.outbox"] = Grant("INSERT", "says events, reads none")
    GRANTS[_engine, f"{_service}.outbox"] = Grant("SELECT DELETE", "the relay")
    GRANTS[_rw, f"{_service}.inbox"] = Grant("SELECT INSERT", "marks what it handled")
    GRANTS[_engine, f"{_service}.inbox"] = Grant("SELECT DELETE", "trims it")

WITH_KEYS = ("tenancy", "ingest", "rules", "alerting", "ml", "retention")
"""The services that create at a request, and so take an Idempotency-Key."""
for _service in WITH_KEYS:
    GRANTS[f"{_service}_engine", f"{_service}.idempotency_keys"] = Grant(
        "SELECT(created_at) DELETE", "forgets keys that are old"
    )

# What is erased and the word of it commit together.
GRANTS["retention_engine", "retention.outbox"] = Grant("SELECT INSERT DELETE", "the relay; says")
GRANTS["retention_engine", "retention.policies"] = Grant(
    "SELECT(tenant_id, id, data_type, keep_days)", "a day is dropped when no tenant wants it"
)

HIDDEN_FROM_OBSERVER = frozenset(
    {
        "password_hash",
        "token_hash",
        "parent_hash",
        "answer",
        "ticket_hash",
        "private_pem",
        "secret",
        "config",
        "email",
    }
)
"""Columns that not even the operators' dashboards read. (Nor any bytea: hashes, bodies of messages.)"""

SCHEMA_USERS: dict[str, frozenset[str]] = {
    "sec": _callers(PUBLIC),
    "bus": RW | {BUS, OBSERVER, "retention_engine"},
    "historian": _callers(
        *("analytics_rw", "ml_rw", "rules_rw", "retention_rw", "ingest_rw"),
        *("rules_engine", "ml_engine", "analytics_engine", "gateway_engine"),
        *("ingest_engine", "retention_engine"),
        *(HISTORIAN_WRITER, OBSERVER, LOOKUP),
    ),
    **{service: _callers(f"{service}_rw", f"{service}_engine", OBSERVER) for service in SERVICES},
}
"""Who may use the names in a schema. (None may create in one.)"""
SCHEMA_USERS["ingest"] |= {HISTORIAN_WRITER, LOOKUP}
SCHEMA_USERS["gateway"] |= {LOOKUP}
SCHEMA_USERS["tenancy"] |= {LOOKUP}

UNIQUE_ACROSS_TENANTS: dict[str, str] = {
    "gateway.refresh_tokens_hash": "random: that two are equal does not happen",
    "gateway.tickets_hash": "random: that two are equal does not happen",
    "gateway.pending_logins_token": "random: that two are equal does not happen",
    "ingest.credentials_token": "random: that two are equal does not happen (certificates may be)",
    "ingest.provisioning_keys_token": "random: that two are equal does not happen",
    "tenancy.api_keys_secret": "random: that two are equal does not happen",
    "tenancy.api_keys_previous": "random: that two are equal does not happen",
    "tenancy.invitations_token": "random: that two are equal does not happen",
    "tenancy.invitations_mailed": "random: that two are equal does not happen",
    "tenancy.registrations_token": "random: that two are equal does not happen",
    "historian.series_id_key": "given by a sequence, never chosen",
    "tenancy.tenants_slug_key": "chosen by the platform's admins alone, who see all",
}
"""Unique indexes of tenants' tables that do not lead with the tenant."""

INDEXES_ACROSS_TENANTS: dict[str, str] = {
    "alerting.firings_cleared": "alerting_engine's, which crosses",
    **{
        f"{service}.idempotency_keys_oldest": f"{service}_engine's, which crosses"
        for service in WITH_KEYS
    },
    "gateway.sessions_revoked": "gateway_engine's, which crosses",
    "gateway.sessions_expiry": "gateway_engine's, which crosses",
    "gateway.tickets_expiry": "gateway_engine's, which crosses",
    "gateway.pending_logins_expiry": "gateway_engine's, which crosses",
    "ingest.devices_of_endpoint": "ingest_engine's, which crosses",
    "ingest.devices_deleted": "ingest_engine's, which crosses",
    "ingest.contacts_due": "ingest_engine's, which crosses",
    "ingest.credentials_lookup": "the look-up's before the tenant is known",
    "ingest.device_terms_terms": "its terms are hashed with the tenant",
    "ingest.commands_due": "ingest_engine's, which crosses",
    "ingest.commands_over": "ingest_engine's, which crosses",
    "ingest.ledger_oldest": "ingest_engine's, which crosses",
    "ingest.usage_untold": "ingest_engine's, which crosses",
    "tenancy.memberships_of_user": "the look-up's at login",
    "tenancy.sign_ons_expiry": "tenancy_engine's, which crosses",
    "tenancy.registrations_expiry": "tenancy_engine's, which crosses",
    "tenancy.mails_due": "tenancy_engine's, which crosses",
}
"""Other indexes of tenants' tables that do not lead with the tenant."""

KEYS_ACROSS_TENANTS: dict[str, str] = {
    "tenancy.tenants_plan_fkey": "plans are of no tenant",
    "tenancy.memberships_user_id_fkey": "a user is nobody's: the membership is what has a tenant",
}
"""Foreign keys of tenants' tables that do not lead with the tenant."""

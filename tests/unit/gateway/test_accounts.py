"""How long it is believed what a user may do."""

from uuid import UUID, uuid4

import pytest

from libs.common.errors import Unavailable
from services.gateway.domain.account import Account, Membership
from services.gateway.usecases.accounts import Accounts

TENANT = uuid4()


class Tenancy:
    """Knows one user, and counts how often it is asked."""

    def __init__(self) -> None:
        self.permissions = frozenset({"a:read"})
        self.asked = 0
        self.is_away = False
        self.accounts: Accounts | None = None
        self.changes_meanwhile = False

    async def account(self, user_id: UUID) -> Account | None:
        self.asked += 1
        if self.is_away:
            raise Unavailable("away")
        answer = Account(
            user_id,
            "ann@plant.example",
            False,
            [Membership(TENANT, "plant", "Plant", "Ann", ["viewer"], self.permissions)],
        )
        if self.changes_meanwhile and self.accounts is not None:
            self.changes_meanwhile = False
            self.permissions = frozenset({"b:read"})
            self.accounts.forget(user_id)
        return answer


class Stopwatch:
    """A monotonic clock that is moved by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def tenancy() -> Tenancy:
    return Tenancy()


@pytest.fixture
def watch() -> Stopwatch:
    return Stopwatch()


@pytest.fixture
def accounts(tenancy: Tenancy, watch: Stopwatch) -> Accounts:
    tenancy.accounts = Accounts(tenancy, watch)
    return tenancy.accounts


async def test_an_answer_is_believed_for_a_minute(
    accounts: Accounts, tenancy: Tenancy, watch: Stopwatch
) -> None:
    ann = uuid4()
    await accounts.get(ann)
    watch.now += 59
    await accounts.get(ann)
    assert tenancy.asked == 1
    watch.now += 1
    await accounts.get(ann)
    assert tenancy.asked == 2


async def test_what_changed_is_asked_again(accounts: Accounts, tenancy: Tenancy) -> None:
    ann = uuid4()
    await accounts.get(ann)
    accounts.forget(ann)
    await accounts.get(ann)
    accounts.forget_tenant(TENANT)
    await accounts.get(ann)
    accounts.forget_tenant(uuid4())
    await accounts.get(ann)
    assert tenancy.asked == 3


async def test_an_answer_that_a_change_overtook_is_not_believed(
    accounts: Accounts, tenancy: Tenancy
) -> None:
    tenancy.changes_meanwhile = True
    account = await accounts.get(uuid4())
    assert account is not None
    assert account.memberships[0].permissions == {"b:read"}


async def test_while_tenancy_is_away_an_earlier_answer_is_believed_for_a_quarter_of_an_hour(
    accounts: Accounts, tenancy: Tenancy, watch: Stopwatch
) -> None:
    ann = uuid4()
    await accounts.get(ann)
    tenancy.is_away = True
    watch.now += 899
    assert await accounts.get(ann) is not None
    watch.now += 1
    with pytest.raises(Unavailable):
        await accounts.get(ann)


async def test_while_tenancy_is_away_what_changed_is_not_believed(
    accounts: Accounts, tenancy: Tenancy
) -> None:
    ann = uuid4()
    await accounts.get(ann)
    tenancy.is_away = True
    accounts.forget(ann)
    with pytest.raises(Unavailable):
        await accounts.get(ann)

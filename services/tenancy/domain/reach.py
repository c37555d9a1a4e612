"""Which of the tenant's devices someone has to do with: all, or those of some groups and all below."""

from uuid import UUID

from libs.common.errors import Forbidden

Groups = frozenset[UUID] | None
"""None: all devices."""


def check_within(own: Groups, groups: Groups) -> None:
    """Raise Forbidden if someone would act on one who reaches further, or let one reach further.

    What lies below which group is not known here, so that a group counts by its name alone: who is
    limited to a site cannot limit others to one line of it.
    """
    if own is not None and (groups is None or not groups <= own):
        raise Forbidden("this reaches beyond the device groups that you are limited to yourself")

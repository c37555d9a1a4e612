"""Where a device stands against its quota, in headers (draft-ietf-httpapi-ratelimit-headers)."""

import asyncio
import math

from fastapi import Request, Response

from libs.common.http.problems import REQUEST_ID, problem_response
from services.ingest.domain.quota import Quota
from services.ingest.usecases.quotas import OverQuota


def rate_limit_headers(quota: Quota) -> dict[str, str]:
    """Return the headers that tell how much is left, counted in messages."""
    now = asyncio.get_running_loop().time()
    rate = quota.rate
    reset_s = quota.wait_s(now) or quota.full_s(now)
    window_s = max(1, math.ceil(rate.burst / rate.per_second))
    return {
        "RateLimit-Policy": f'"device";q={math.floor(rate.burst)};w={window_s}',
        "RateLimit": f'"device";r={quota.remaining};t={math.ceil(reset_s)}',
    }


async def on_over_quota(request: Request, error: Exception) -> Response:
    """Answer a device that has sent more than it may: 429, when to come again, and why."""
    assert isinstance(error, OverQuota)
    response = problem_response(error, request.scope.get(REQUEST_ID))
    response.headers.update(rate_limit_headers(error.quota))
    return response

"""Errors of Prefect's server, explained in one line."""

import httpx
from prefect.settings import PREFECT_API_URL

from flows.errors import one_line


def explain(error: Exception) -> str:
    """Return what is wrong with the server, with a remedy, in one line."""
    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
    if status in (401, 403):
        return (
            f"Prefect: {PREFECT_API_URL.value()} rejects our credentials ({status}); set "
            "PREFECT_API_AUTH_STRING to the server's authentication string"
        )
    told = one_line(error)
    where = PREFECT_API_URL.value()
    at = f" ({where})" if where and where not in told else ""
    return f"Prefect: {told}{at}; start that server, or unset PREFECT_API_URL for a temporary one"

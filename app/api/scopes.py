"""Which scope each address of the API needs. Asked by the guard before a body is read.

An address that stands nowhere here needs `admin`: a new route is closed until someone decides.

Source: reliability.md §5 (the scopes); OpenAI's restricted keys (the refusal's wording and code).
"""

from app.core.errors import Forbidden
from app.services.api_keys import ADMIN, Scope

# The longest prefix wins. Reading is GET and HEAD, writing is the rest.
_NEEDED: dict[str, tuple[Scope | None, Scope]] = {
    "/files": ("files:read", "files:write"),
    "/uploads": ("files:read", "files:write"),
    "/fine_tuning/jobs": ("jobs:read", "jobs:write"),
    "/fine_tuning/alpha/graders": ("graders:run", "graders:run"),
    "/graders": ("graders:run", "graders:run"),
    "/fine_tuning/checkpoints": (ADMIN, ADMIN),
    # Every key may see which models there are; deleting one is the owner's.
    "/models": (None, ADMIN),
    "/chat/completions": ("models:use", "models:use"),
    "/completions": ("models:use", "models:use"),
    "/responses": ("models:use", "models:use"),
    "/webhook_endpoints": ("webhooks:admin", "webhooks:admin"),
    "/webhook_event_types": (None, ADMIN),
}


def needed(method: str, path: str) -> Scope | None:
    """Return the scope a request needs, or None when any key will do."""
    steps = path.rstrip("/").split("/")
    # A key that may ask a model need not be one that may carry it away. Any name can stand between.
    if steps[1:2] == ["models"] and steps[-1] == "export":
        return ADMIN
    for length in range(len(steps), 1, -1):
        found = _NEEDED.get("/".join(steps[:length]))
        if found is not None:
            return found[0] if method in ("GET", "HEAD") else found[1]
    return ADMIN


def check(scopes: frozenset[str], method: str, path: str) -> None:
    """Let a key with these scopes pass. Raises: Forbidden `missing_scope`."""
    scope = needed(method, path)
    if scope is not None and ADMIN not in scopes and scope not in scopes:
        raise Forbidden(
            f"You have insufficient permissions for this operation. Missing scopes: {scope}.",
            code="missing_scope",
        )

"""What a key may do: its scopes on every route, its project, its organisation."""

import openai
import pytest
from fastapi.routing import APIRoute

from app.api import scopes
from app.api.routes import NOUNS
from app.core.context import Context
from app.services import api_keys
from tests.app.api.server import LINES, MODEL, Server

ROUTES = sorted(
    (method, route.path)
    for noun in NOUNS
    for route in noun.router.routes
    if isinstance(route, APIRoute)
    for method in route.methods
)
FREE = {
    ("GET", "/models"),
    ("GET", "/models/{model_id:path}"),
    ("GET", "/models/{model_id:path}/serving"),
    ("GET", "/webhook_event_types"),
}


def _key(server: Server, *scopes: str) -> str:
    with server.context.db.transaction() as session:
        return api_keys.create_key(session, project_id=server.project_id, name="x", scopes=scopes)[1]


def test_every_route_is_in_the_table() -> None:
    """Admin by decision, not because nobody thought of it."""
    decided = set(scopes._NEEDED)
    for _, path in ROUTES:
        assert any(path == known or path.startswith(f"{known}/") for known in decided), path


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_route_needs_its_scope(server: Server, method: str, path: str) -> None:
    """A key with every other scope is refused before its body is looked at; one with it gets further."""
    wanted = scopes.needed(method, path)
    address = "/v1" + path.replace("{model_id:path}", "ft:a").replace("{", "").replace("}", "")
    if wanted is None:
        assert (method, path) in FREE
        wanted_keys, refused = [_key(server, "graders:run")], []
    else:
        others = [scope for scope in api_keys.SCOPES if scope not in (wanted, api_keys.ADMIN)]
        wanted_keys, refused = [_key(server, wanted), server.key], [_key(server, *others)]
    for key in wanted_keys:
        answer = server.raw(method, address, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code != 403, answer.text
    for key in refused:
        answer = server.raw(method, address, headers={"authorization": f"Bearer {key}"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (403, "missing_scope")
        assert str(wanted) in error["message"]


def test_an_unknown_address_is_closed_to_restricted_keys(server: Server) -> None:
    answer = server.raw(
        "GET", "/v1/nowhere", headers={"authorization": f"Bearer {_key(server, 'jobs:read')}"}
    )
    assert answer.status_code == 403
    assert server.raw("GET", "/v1/nowhere").status_code == 404


def test_the_client_raises_permission_denied(client: openai.OpenAI, server: Server) -> None:
    reader = client.with_options(api_key=_key(server, "files:read"))
    assert reader.files.list().data == []
    with pytest.raises(openai.PermissionDeniedError) as caught:
        reader.files.create(file=("a.jsonl", LINES), purpose="fine-tune")
    assert caught.value.code == "missing_scope"
    assert server.stored() == []


def test_project_and_organization_headers_are_understood(client: openai.OpenAI, server: Server) -> None:
    other, _ = server.new_key("other")
    for organization in ("personal", "org-personal", None):
        fitting = client.with_options(organization=organization, project=server.project_id)
        assert [model.id for model in fitting.models.list()] == [MODEL]
    for options, code in (
        ({"project": other}, "mismatched_project"),
        ({"organization": "org-other"}, "mismatched_organization"),
    ):
        with pytest.raises(openai.AuthenticationError) as caught:
            client.with_options(**options).models.list()  # type: ignore[arg-type]
        assert caught.value.code == code


def test_a_key_has_scopes_there_are(context: Context) -> None:
    with context.db.transaction() as session:
        for wrong in ((), ("jobs:fly",)):
            with pytest.raises(api_keys.InvalidRequest) as caught:
                api_keys.create_key(session, project_id="proj_x", name="x", scopes=wrong)
            assert caught.value.param == "scopes"

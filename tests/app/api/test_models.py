"""Models through the official client: names with slashes and colons, and whose they are."""

import openai
import pytest

from app.services import jobs, models
from tests.app.api.server import MODEL, Server

TUNED = "ft:tiny/base-model:personal::AbCd1234"


def _tune(server: Server, job_id: str) -> None:
    with server.context.db.transaction() as session:
        job = jobs.get_job(session, project_id=server.project_id, job_id=job_id)
        models.add_tuned(session, job=job, model_id=TUNED, kind="tuned", uri="x", details={})


def test_models_are_listed_and_found_by_any_name(client: openai.OpenAI, server: Server, job_id: str) -> None:
    _tune(server, job_id)
    assert [(m.id, m.owned_by) for m in client.models.list()] == [(TUNED, "org-personal"), (MODEL, "system")]
    assert set(server.raw("GET", "/v1/models").json()) == {"object", "data"}
    for name in (TUNED, MODEL):
        model = client.models.retrieve(name)
        assert (model.id, model.object) == (name, "model")
        assert model.created > 0
    assert server.raw("GET", "/v1/models/tiny%2Fbase-model").json()["id"] == MODEL
    assert server.raw("GET", "/v1/models/tiny/base-model").json()["id"] == MODEL
    assert (
        server.raw("GET", "/v1/models/ft%3Atiny%2Fbase-model%3Apersonal%3A%3AAbCd1234").json()["id"] == TUNED
    )


def test_an_unknown_or_foreign_model_is_404(client: openai.OpenAI, server: Server, job_id: str) -> None:
    _tune(server, job_id)
    _, key = server.new_key("other")
    other = client.with_options(api_key=key)
    assert [model.id for model in other.models.list()] == [MODEL]
    for caller, name in ((client, "ft:123"), (client, "a/b c"), (other, TUNED)):
        with pytest.raises(openai.NotFoundError) as caught:
            caller.models.retrieve(name)
        assert caught.value.body == {
            "message": f"The model '{name}' does not exist",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }

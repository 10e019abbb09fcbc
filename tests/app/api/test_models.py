"""Models through the official client: names with slashes and colons, and whose they are."""

from pathlib import Path

import openai
import pytest

from app.services import checkpoints, jobs, models
from tests.app.api.server import BOTH, MODEL, Server

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


def test_an_alias_names_the_model_that_answers_for_it(
    client: openai.OpenAI, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(server.context.settings.model_aliases, "gpt-x", MODEL)
    assert client.models.retrieve("gpt-x").id == MODEL
    assert server.raw("GET", "/v1/models/gpt-x/serving").json()["status"] == "down"


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


CHECKPOINT = "ft:tiny/base-model:personal::XyZw9876:ckpt-step-2"


def _keep_checkpoint(server: Server, job_id: str) -> tuple[Path, Path]:
    """Give a job a checkpoint and a recovery point, and return where both lie."""
    storage = server.context.storage
    weights, recovery = f"jobs/{job_id}/checkpoints/step-000002.tok-1", f"jobs/{job_id}/recovery/step-000002"
    for uri in (weights, recovery):
        with storage.writing_directory(uri) as folder:
            (folder / "adapter.safetensors").write_bytes(b"weights")
    with server.context.db.transaction() as session:
        job = jobs.get_job(session, project_id=server.project_id, job_id=job_id)
        job.checkpoint_uri = recovery
        checkpoints.keep(
            session,
            job=job,
            step=2,
            model_id=CHECKPOINT,
            uri=weights,
            metrics={"step": 2},
            valid_reward_mean=0.5,
        )
    return storage.path(weights), storage.path(recovery)


@BOTH
def test_a_checkpoint_is_deleted_with_its_weights_only(
    client: openai.OpenAI, server: Server, job_id: str
) -> None:
    weights, recovery = _keep_checkpoint(server, job_id)
    gone = client.models.delete(CHECKPOINT)
    assert (gone.id, gone.object, gone.deleted) == (CHECKPOINT, "model", True)
    assert not weights.exists()
    assert (recovery / "adapter.safetensors").exists()
    assert client.fine_tuning.jobs.checkpoints.list(job_id).data == []
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.delete(CHECKPOINT)
    assert caught.value.code == "model_not_found"


def test_a_models_weights_go_after_the_commit_only(server: Server, job_id: str) -> None:
    weights, _ = _keep_checkpoint(server, job_id)

    def interrupted() -> None:
        with server.context.db.transaction() as session:
            models.delete_model(
                session,
                storage=server.context.storage,
                project_id=server.project_id,
                model_id=CHECKPOINT,
            )
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert weights.exists()
    assert server.raw("GET", f"/v1/models/{CHECKPOINT}").status_code == 200


def test_only_a_projects_own_models_can_be_deleted(
    client: openai.OpenAI, server: Server, job_id: str
) -> None:
    _tune(server, job_id)
    other_id, key = server.new_key("other")
    other = client.with_options(api_key=key)
    with pytest.raises(openai.PermissionDeniedError, match="base model") as refused:
        client.models.delete(MODEL)
    assert refused.value.code == "insufficient_permissions"
    with pytest.raises(openai.NotFoundError):
        other.models.delete(TUNED)
    client.fine_tuning.checkpoints.permissions.create(TUNED, project_ids=[other_id])
    with pytest.raises(openai.PermissionDeniedError, match="another project"):
        other.models.delete(TUNED)
    assert {model.id for model in client.models.list()} == {TUNED, MODEL}


def test_a_model_is_stopped_and_loaded(client: openai.OpenAI, server: Server, job_id: str) -> None:
    _tune(server, job_id)
    address = f"/v1/models/{TUNED}"
    assert server.raw("GET", f"{address}/serving").json()["status"] == "down"
    stopped = server.raw("POST", f"{address}/stop").json()
    assert (stopped["id"], stopped["object"], stopped["status"]) == (TUNED, "model.serving", "stopped")
    with pytest.raises(openai.InternalServerError, match=rf"POST to /v1/models/{TUNED}/load") as refused:
        client.chat.completions.create(model=TUNED, messages=[{"role": "user", "content": "x"}])
    assert (refused.value.status_code, refused.value.code) == (503, "model_stopped")
    assert server.raw("POST", f"{address}/load").json()["status"] == "down"
    assert server.raw("POST", f"/v1/models/{MODEL}/stop").status_code == 403
    other_id, key = server.new_key("other")
    for method, verb in (("GET", "serving"), ("POST", "stop"), ("POST", "load")):
        answer = server.raw(method, f"{address}/{verb}", headers={"authorization": f"Bearer {key}"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    client.fine_tuning.checkpoints.permissions.create(TUNED, project_ids=[other_id])
    server.raw("POST", f"{address}/stop")
    other = client.with_options(api_key=key)
    with pytest.raises(openai.InternalServerError, match="the project that shares it has to load it"):
        other.chat.completions.create(model=TUNED, messages=[{"role": "user", "content": "x"}])

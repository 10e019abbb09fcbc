"""Checkpoint permissions through the official client."""

import openai
import pytest

from app.services import jobs, models
from tests.app.api.server import BOTH, MODEL, Server

TUNED = "ft:tiny/base-model:personal::AbCd1234:ckpt-step-2"


@pytest.fixture
def tuned(server: Server, job_id: str) -> str:
    """A checkpoint whose name holds a slash and colons."""
    with server.context.db.transaction() as session:
        job = jobs.get_job(session, project_id=server.project_id, job_id=job_id)
        models.add_tuned(session, job=job, model_id=TUNED, kind="checkpoint", uri="x", details={})
    return TUNED


@BOTH
def test_a_model_is_shared_and_unshared(client: openai.OpenAI, server: Server, tuned: str) -> None:
    other_id, key = server.new_key("other")
    other = client.with_options(api_key=key)
    # The Postgres of a test run is shared, and so are its base models.
    base = {model.id for model in other.models.list()}
    assert tuned not in base
    permissions = client.fine_tuning.checkpoints.permissions
    [made] = permissions.create(tuned, project_ids=[other_id]).data
    assert (made.object, made.project_id, made.id[:3]) == ("checkpoint.permission", other_id, "cp_")
    assert {model.id for model in other.models.list()} == {tuned, *base}
    assert other.models.retrieve(tuned).id == tuned
    # Sharing twice makes no second permission.
    assert permissions.create(tuned, project_ids=[other_id, other_id]).data == [made]
    gone = permissions.delete(made.id, fine_tuned_model_checkpoint=tuned)
    assert (gone.id, gone.object, gone.deleted) == (made.id, "checkpoint.permission", True)
    assert {model.id for model in other.models.list()} == base
    with pytest.raises(openai.NotFoundError) as caught:
        permissions.delete(made.id, fine_tuned_model_checkpoint=tuned)
    assert caught.value.param == "permission_id"


def test_creating_answers_with_the_list(server: Server, tuned: str) -> None:
    first, second = server.new_key("one")[0], server.new_key("two")[0]
    path = f"/v1/fine_tuning/checkpoints/{tuned}/permissions"
    made = server.raw("POST", path, json={"project_ids": [first, second]}).json()
    assert set(made) == {"object", "data", "first_id", "last_id", "has_more"}
    assert (made["object"], made["has_more"]) == ("list", False)
    assert [row["project_id"] for row in made["data"]] == [first, second]
    assert (made["first_id"], made["last_id"]) == (made["data"][0]["id"], made["data"][1]["id"])
    assert set(made["data"][0]) == {"id", "object", "created_at", "project_id"}


def test_the_list_pages_by_last_id_in_both_orders(client: openai.OpenAI, server: Server, tuned: str) -> None:
    permissions = client.fine_tuning.checkpoints.permissions
    ids = []
    for n in range(5):
        project, _ = server.new_key(f"project {n}")
        ids.append(permissions.create(tuned, project_ids=[project]).data[0].id)
    assert [row.id for row in permissions.list(tuned, limit=2)] == ids[::-1]
    assert [row.id for row in permissions.list(tuned, limit=2, order="ascending")] == ids
    page = permissions.list(tuned, limit=2)
    assert (page.has_more, page.last_id) == (True, ids[3])
    assert [row.id for row in permissions.list(tuned, project_id=project)] == ids[4:]
    for query, param in (("order=desc", "order"), ("limit=0", "limit"), ("after=cp_x", "after")):
        answer = server.raw("GET", f"/v1/fine_tuning/checkpoints/{tuned}/permissions?{query}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_only_the_owner_shares_and_only_with_projects_there_are(
    client: openai.OpenAI, server: Server, tuned: str
) -> None:
    other_id, key = server.new_key("other")
    stranger = client.with_options(api_key=key).fine_tuning.checkpoints.permissions
    permissions = client.fine_tuning.checkpoints.permissions
    for call in (
        lambda: permissions.create(MODEL, project_ids=[other_id]),
        lambda: permissions.list("ft:nothing"),
        lambda: stranger.create(tuned, project_ids=[other_id]),
        lambda: stranger.list(tuned),
        lambda: stranger.delete("cp_x", fine_tuned_model_checkpoint=tuned),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.code == "model_not_found"
    for project_ids, param in (([], "project_ids"), ([other_id, "proj_x"], "project_ids[1]")):
        with pytest.raises(openai.BadRequestError) as refused:
            permissions.create(tuned, project_ids=project_ids)
        assert refused.value.param == param
    assert permissions.list(tuned).data == []

"""What a job leaves: events, checkpoints, rollouts, the evaluation, written as a trainer writes them."""

import openai
import pytest

from app.services import checkpoints, events, jobs, rollouts
from app.services.rollouts import RolloutRecord
from tests.app.api.server import BOTH, Server, count_queries


def _record(item: int, sample: int, reward: float | None) -> RolloutRecord:
    return RolloutRecord(
        item_index=item,
        sample_index=sample,
        completion=f"answer {item}.{sample} «é»",
        reward=reward,
        advantage=0.5,
        grader_rewards={"exact": reward},
        errors={"sample_parse_error": reward is None},
        finish_reason="stop",
        prompt_tokens=12,
        completion_tokens=3,
    )


def _write_batch(server: Server, job_id: str, step: int, split: str, records: list[RolloutRecord]) -> None:
    uri = rollouts.batch_uri(job_id=job_id, step=step, split=split, token=1)
    server.context.storage.write(uri, rollouts.encode_batch(records))
    with server.context.db.transaction() as session:
        rollouts.save_batch(session, job_id=job_id, step=step, split=split, uri=uri, records=records)


@BOTH
def test_events_page_newest_first(client: openai.OpenAI, server: Server, job_id: str) -> None:
    with server.context.db.transaction() as session:
        for step in range(1, 26):
            events.append(
                session,
                job_id=job_id,
                type="metrics",
                message=f"Step {step}/25",
                data={"step": step, "scores": {"train_reward_mean": 0.25}},
            )
    page = client.fine_tuning.jobs.list_events(job_id)
    assert len(page.data) == 20
    assert page.has_more
    first = page.data[0]
    assert (first.object, first.type, first.level) == ("fine_tuning.job.event", "metrics", "info")
    assert first.data == {"step": 25, "scores": {"train_reward_mean": 0.25}}
    assert first.id.startswith("ftevent-")
    whole = list(client.fine_tuning.jobs.list_events(job_id, limit=7))
    assert [event.message for event in whole] == [
        *(f"Step {step}/25" for step in range(25, 0, -1)),
        f"Created fine-tuning job: {job_id}",
    ]
    raw = server.raw("GET", f"/v1/fine_tuning/jobs/{job_id}/events?limit=1").json()
    assert set(raw) == {"object", "data", "has_more"}
    message = server.raw("GET", f"/v1/fine_tuning/jobs/{job_id}/events?after={whole[-2].id}").json()["data"][
        0
    ]
    assert message["data"] == {}
    assert message["type"] == "message"


def test_checkpoints_page_newest_first(client: openai.OpenAI, server: Server, job_id: str) -> None:
    with server.context.db.transaction() as session:
        job = jobs.get_job(session, project_id=server.project_id, job_id=job_id)
        for step in (5, 10, 15):
            checkpoints.keep(
                session,
                job=job,
                step=step,
                model_id=f"ft:{job.model}:personal::id{step:06d}:ckpt-step-{step}",
                uri=f"jobs/{job_id}/step-{step}",
                metrics={"step": step, "train_mean_reward": 0.5, "full_valid_mean_reward": step / 20},
                valid_reward_mean=step / 20,
            )
    raw = server.raw("GET", f"/v1/fine_tuning/jobs/{job_id}/checkpoints").json()
    assert raw["first_id"] == raw["data"][0]["id"]
    assert raw["last_id"] == raw["data"][-1]["id"]
    assert raw["has_more"] is False
    found = list(client.fine_tuning.jobs.checkpoints.list(job_id, limit=1))
    assert [row.step_number for row in found] == [15, 10, 5]
    assert found[0].fine_tuned_model_checkpoint == "ft:tiny/base-model:personal::id000015:ckpt-step-15"
    assert found[0].fine_tuning_job_id == job_id
    assert found[0].metrics.to_dict()["full_valid_mean_reward"] == 0.75
    assert client.models.retrieve(found[0].fine_tuned_model_checkpoint).owned_by == "org-personal"


def test_rollouts_are_filtered_and_carry_their_text(server: Server, job_id: str) -> None:
    _write_batch(server, job_id, 1, "train", [_record(i, s, 1.0) for i in range(3) for s in range(2)])
    _write_batch(server, job_id, 1, "valid", [_record(0, 0, None)])
    path = f"/v1/fine_tuning/jobs/{job_id}/rollouts"
    page = server.raw("GET", f"{path}?limit=4").json()
    assert (len(page["data"]), page["has_more"]) == (4, True)
    rest = server.raw("GET", f"{path}?limit=4&after={page['data'][-1]['id']}").json()
    assert (len(rest["data"]), rest["has_more"]) == (3, False)
    row = server.raw("GET", f"{path}?split=train&item_index=2&step=1").json()["data"][1]
    assert row.pop("id").startswith("rollout_")
    assert row == {
        "object": "fine_tuning.job.rollout",
        "step": 1,
        "split": "train",
        "item_index": 2,
        "sample_index": 1,
        "completion": "answer 2.1 «é»",
        "reward": 1.0,
        "grader_rewards": {"exact": 1.0},
        "errors": {},
        "advantage": 0.5,
        "finish_reason": "stop",
        "tokens": {"prompt": 12, "completion": 3},
    }
    missing = server.raw("GET", f"{path}?split=valid").json()["data"][0]
    assert missing["reward"] is None
    assert missing["errors"] == {"sample_parse_error": True}
    few = count_queries(server.context, lambda: server.raw("GET", f"{path}?split=train&limit=2"))
    assert count_queries(server.context, lambda: server.raw("GET", f"{path}?split=train&limit=100")) == few


@pytest.mark.parametrize(
    ("query", "param"),
    [("split=dev", "split"), ("step=-1", "step"), ("item_index=x", "item_index"), (f"step={2**31}", "step")],
)
def test_a_bad_rollout_filter_is_400(server: Server, job_id: str, query: str, param: str) -> None:
    answer = server.raw("GET", f"/v1/fine_tuning/jobs/{job_id}/rollouts?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@BOTH
def test_the_evaluation_compares_base_and_tuned(server: Server, job_id: str) -> None:
    path = f"/v1/fine_tuning/jobs/{job_id}/evaluation"
    early = server.raw("GET", path)
    assert (early.status_code, early.json()["error"]["code"]) == (404, "evaluation_not_found")
    assert server.raw("GET", f"{path}/items").json() == {"object": "list", "data": [], "has_more": False}
    _write_batch(server, job_id, 0, "test", [_record(i, 0, 0.0) for i in range(4)])
    _write_batch(server, job_id, 9, "test", [_record(i, 0, float(i > 0)) for i in range(4)])
    found = server.raw("GET", path).json()
    assert found["object"] == "fine_tuning.job.evaluation"
    assert (found["split"], found["n"], found["fixed"], found["broken"]) == ("test", 4, 3, 0)
    assert (found["base"]["mean"], found["tuned"]["mean"], found["difference"]["mean"]) == (0.0, 0.75, 0.75)
    low, high = found["difference"]["ci95"]
    assert 0 <= low <= 0.75 <= high <= 1
    items = server.raw("GET", found["items"]).json()["data"]
    assert [(row["item_index"], row["change"]) for row in items] == [
        (0, "same"),
        (1, "fixed"),
        (2, "fixed"),
        (3, "fixed"),
    ]

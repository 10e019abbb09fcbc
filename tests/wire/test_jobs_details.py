"""Details of jobs, files and lists that servers like this one most often get wrong, one test each.

A test's number is the detail's in the design's list. Those of jobs that ran are in `test_run_details.py`,
those of what is not served yet (evals, preference data, streams) in `test_unserved_details.py`.

Source: OpenAI's API specification, and answers of its service that were recorded by others.
"""

from typing import Any

import openai
import pytest

from app.services import jobs, models
from tests.app.api.server import GRADER, LINES, METHOD, MODEL, Server

OTHER = GRADER | {"name": "close", "operation": "like"}
FORMULA = "0.5 * exact + 0.5 * close"


def _create(server: Server, training_file: str, **changes: Any) -> dict[str, Any]:
    body = {"model": MODEL, "training_file": training_file, "method": METHOD, **changes}
    answer = server.raw("POST", "/v1/fine_tuning/jobs", json=body)
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


def _graded(grader: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "reinforcement", "reinforcement": {"grader": grader, **more}}


@pytest.mark.parametrize(
    "graders",
    [{"exact": GRADER, "close": OTHER}, [GRADER, OTHER]],
    ids=["dict", "list"],
)
def test_detail_02_multi_graders_is_a_dict(server: Server, training_file: str, graders: Any) -> None:
    multi = {"type": "multi", "graders": graders, "calculate_output": FORMULA}
    job = _create(server, training_file, method=_graded(multi))
    given = job["method"]["reinforcement"]["grader"]
    assert given["graders"] == {"exact": GRADER, "close": OTHER}
    assert given["calculate_output"] == FORMULA


def test_detail_02_multi_graders_may_be_a_single_grader(server: Server, training_file: str) -> None:
    multi = {"type": "multi", "graders": GRADER, "calculate_output": "exact"}
    job = _create(server, training_file, method=_graded(multi))
    assert job["method"]["reinforcement"]["grader"]["graders"] == {"exact": GRADER}


def test_detail_04_nullable_keys_are_present(server: Server, training_file: str) -> None:
    job = _create(server, training_file)
    nulls = (
        *("error", "fine_tuned_model", "finished_at", "trained_tokens", "validation_file"),
        *("hyperparameters", "estimated_finish", "metadata"),
    )
    assert {key: job[key] for key in nulls} == dict.fromkeys(nulls)
    assert (job["result_files"], job["integrations"]) == ([], [])
    assert isinstance(job["seed"], int)


def test_detail_05_the_fields_of_the_real_service_are_there(server: Server, training_file: str) -> None:
    job = _create(server, training_file, suffix="mine")
    assert job["user_provided_suffix"] == "mine"
    assert job["usage_metrics"] is None
    assert job["eval_id"] is None
    assert job["shared_with_openai"] is False
    assert job["method"]["reinforcement"]["response_format"] is None


def test_detail_07_every_encoding_of_the_metadata_filter(server: Server, training_file: str) -> None:
    red = _create(server, training_file, metadata={"color": "red", "empty": ""})["id"]
    blue = _create(server, training_file, metadata={"color": "blue & green"})["id"]
    bare = _create(server, training_file)["id"]

    def found(query: str) -> list[str]:
        answer = server.raw("GET", f"/v1/fine_tuning/jobs?{query}")
        return [job["id"] for job in answer.json()["data"]]

    assert found("metadata%5Bcolor%5D=red") == [red]
    assert found("metadata[color]=red") == [red]
    assert found("metadata%5Bcolor%5D=blue+%26%20green") == [blue]
    assert found("metadata[color]=red&metadata[empty]=") == [red]
    assert found("metadata[empty]=") == [red]
    assert found("metadata=null") == [bare]
    assert found("metadata=") == [bare]
    assert found("") == [bare, blue, red]


def test_detail_08_lists_are_newest_first_and_say_whether_more_follows(
    server: Server, training_file: str
) -> None:
    ids = [_create(server, training_file)["id"] for _ in range(21)][::-1]
    page = server.raw("GET", "/v1/fine_tuning/jobs").json()
    assert set(page) == {"object", "data", "has_more"}
    assert ([job["id"] for job in page["data"]], page["has_more"]) == (ids[:20], True)
    rest = server.raw("GET", f"/v1/fine_tuning/jobs?after={ids[19]}").json()
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (ids[20:], False)
    end = server.raw("GET", f"/v1/fine_tuning/jobs?after={ids[20]}&unknown=1").json()
    assert end == {"object": "list", "data": [], "has_more": False}
    events = server.raw("GET", f"/v1/fine_tuning/jobs/{ids[0]}/events").json()
    assert set(events) == {"object", "data", "has_more"}
    kept = server.raw("GET", f"/v1/fine_tuning/jobs/{ids[0]}/checkpoints").json()
    assert kept == {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}


def test_detail_08_limits_default_differently(server: Server) -> None:
    document = server.http.get(f"{server.url}/v1/openapi.json").json()
    limits = {
        path: parameter["schema"]["default"]
        for path, operations in document["paths"].items()
        for parameter in operations.get("get", {}).get("parameters", [])
        if parameter["name"] == "limit"
    }
    assert limits["/files"] == 10_000
    assert limits["/fine_tuning/jobs"] == limits["/fine_tuning/jobs/{job_id}/events"] == 20
    assert limits["/fine_tuning/jobs/{job_id}/checkpoints"] == 10
    assert limits["/fine_tuning/checkpoints/{model_id}/permissions"] == 10
    assert limits["/webhook_endpoints"] == 20


@pytest.mark.parametrize(
    "name",
    ["ft:tiny/base-model:personal::AbCd1234", "ft:tiny/base-model:personal:a b:AbCd1234:ckpt-step-20"],
)
def test_detail_09_tuned_names_in_addresses(
    client: openai.OpenAI, server: Server, job_id: str, name: str
) -> None:
    with server.context.db.transaction() as session:
        job = jobs.get_job(session, project_id=server.project_id, job_id=job_id)
        models.add_tuned(session, job=job, model_id=name, kind="checkpoint", uri="x", details={})
    assert client.models.retrieve(name).id == name
    permissions = client.fine_tuning.checkpoints.permissions
    made = permissions.create(name, project_ids=[server.project_id]).data[0]
    assert [row.id for row in permissions.list(name)] == [made.id]
    encoded = name.replace("/", "%2F").replace(" ", "%20")
    assert server.raw("GET", f"/v1/models/{encoded}").json()["id"] == name
    assert server.raw("GET", f"/v1/models/{encoded.replace(':', '%3A')}").json()["id"] == name


def test_detail_13_forms_as_clients_send_them(server: Server) -> None:
    boundary = "a-boundary"
    parts = (
        'Content-Disposition: form-data; name="file"; filename="t.jsonl"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n" + LINES.decode(),
        'Content-Disposition: form-data; name="expires_after[anchor]"\r\n\r\ncreated_at',
        'Content-Disposition: form-data; name="expires_after[seconds]"\r\n\r\n3600',
        'Content-Disposition: form-data; name="purpose"\r\n\r\nfine-tune',
    )
    form = "".join(f"--{boundary}\r\n{part}\r\n" for part in parts) + f"--{boundary}--\r\n"
    pieces = (form[start : start + 40].encode() for start in range(0, len(form), 40))
    content_type = {"content-type": f"multipart/form-data; boundary={boundary}"}
    answer = server.raw("POST", "/v1/files", content=pieces, headers=content_type)
    assert "content-length" not in answer.request.headers
    file = answer.json()
    assert (file["bytes"], file["purpose"], file["filename"]) == (len(LINES), "fine-tune", "t.jsonl")
    assert file["expires_at"] == file["created_at"] + 3600


def test_detail_14_files_are_processed_and_come_back_whatever_is_accepted(
    client: openai.OpenAI, server: Server, training_file: str
) -> None:
    assert client.files.wait_for_processing(training_file, max_wait_seconds=10).status == "processed"
    path = f"/v1/files/{training_file}/content"
    for accepted in ("application/binary", "application/json", "text/html"):
        answer = server.raw("GET", path, headers={"accept": accepted})
        assert (answer.status_code, answer.content) == (200, LINES)
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-disposition"] == 'attachment; filename="train.jsonl"'

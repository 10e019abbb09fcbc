"""Details of what is not served yet: evals, preference data. Each is refused cleanly, at once.

A client must be able to tell "not here" from a fault, and must not retry.

Source: as in `test_jobs_details.py`.
"""

import json
from typing import Any

import openai
import pytest

from tests.app.api.server import MODEL, Server

MESSAGES: Any = [{"role": "user", "content": "2+2?"}]
RUN = "/v1/evals/eval_1/runs/evalrun_1"
PREFERRED, OTHER = [{"role": "assistant", "content": "4"}], [{"role": "assistant", "content": "5"}]


def _is_no_route(server: Server, method: str, path: str, **options: Any) -> None:
    answer = server.raw(method, path, **options)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert path in error["message"]


@pytest.mark.parametrize("path", [RUN, f"{RUN}/cancel"], ids=["old", "new"])
def test_detail_01_an_eval_run_is_cancelled_at_neither_address(server: Server, path: str) -> None:
    _is_no_route(server, "POST", path)


def test_detail_01_the_client_says_that_evals_are_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.evals.runs.cancel("evalrun_1", eval_id="eval_1")


@pytest.mark.parametrize("kind", ["output", "completion"])
def test_detail_03_preference_data_is_kept_but_not_trained_on(
    client: openai.OpenAI, server: Server, kind: str
) -> None:
    row = {"input": {"messages": MESSAGES}, f"preferred_{kind}": PREFERRED, f"non_preferred_{kind}": OTHER}
    data = json.dumps(row).encode() + b"\n"
    file = client.files.create(file=("pairs.jsonl", data), purpose="fine-tune")
    assert client.files.content(file.id).read() == data
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, method={"type": "dpo", "dpo": {}})
    assert (refused.value.code, refused.value.param) == ("unsupported_value", "method.type")
    assert client.fine_tuning.jobs.list().data == []

"""Python graders on a running server: run by the official client, refused early, and closed when unsafe."""

from typing import Any

import openai
import pytest

from app.graders.sandbox import landlock
from app.graders.sandbox.level import choose
from tests.app.api.server import Server

RUN, VALIDATE = "/v1/fine_tuning/alpha/graders/run", "/v1/fine_tuning/alpha/graders/validate"


@pytest.fixture(autouse=True)
def _fresh_choice() -> Any:
    choose.cache_clear()
    yield
    choose.cache_clear()


def _python(body: str) -> dict[str, Any]:
    return {"type": "python", "name": "code", "source": f"def grade(sample, item):\n    {body}\n"}


def _run(server: Server, grader: dict[str, Any], sample: str = "4") -> dict[str, Any]:
    body = {"grader": grader, "model_sample": sample, "item": {"answer": "4"}}
    response = server.raw("POST", RUN, json=body)
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


def test_a_python_grader_is_run_by_the_official_client(client: openai.OpenAI) -> None:
    """The image tag of OpenAI's example is taken and kept."""
    grader = _python("return float(sample['output_text'] == item['answer'])") | {"image_tag": "2025-05-08"}
    done = client.fine_tuning.alpha.graders.run(
        grader=grader,  # type: ignore[arg-type]
        item={"answer": "4"},
        model_sample="4",
    )
    assert (done.reward, done.metadata.type) == (1.0, "python")
    assert done.metadata.errors.python_grader_runtime_error is False
    checked = client.fine_tuning.alpha.graders.validate(grader=grader)  # type: ignore[arg-type]
    assert checked.grader is not None
    assert checked.grader.to_dict() == grader


def test_an_answer_that_reads_as_json_is_handed_over_as_json(server: Server) -> None:
    grader = _python("return sample['output_json']['a']")
    assert _run(server, grader, '{"a": 0.5}')["reward"] == 0.5


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return 1 +", "SyntaxError"),
        ("return item['nothing']", "line 2, in grade"),
        ("return 'x'", "not a number"),
        ("import os; os._exit(0)", "without an answer"),
    ],
)
def test_a_run_that_goes_wrong_is_a_zero_with_its_flag(server: Server, body: str, told: str) -> None:
    done = _run(server, _python(body))
    assert done["reward"] == 0.0
    errors = done["metadata"]["errors"]
    assert errors["python_grader_runtime_error"] is True
    assert told in errors["python_grader_runtime_error_details"]
    assert errors["python_grader_server_error"] is False


def test_a_source_that_is_no_grader_is_refused_when_it_is_validated(server: Server) -> None:
    broken = {"type": "python", "source": "def grade(sample)\n    return 1\n"}
    response = server.raw("POST", VALIDATE, json={"grader": broken})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("grader.source", "invalid_value")
    assert 'File "grader.py", line 1' in error["message"]


@pytest.mark.parametrize(
    ("grader", "param"),
    [
        ({"type": "python"}, "grader.source"),
        ({"type": "python", "source": ""}, "grader.source"),
        ({"type": "python", "source": 3}, "grader.source"),
        ({"type": "python", "source": "x", "files": []}, "grader.files"),
    ],
)
def test_a_malformed_python_grader_names_its_key(server: Server, grader: Any, param: str) -> None:
    response = server.raw("POST", VALIDATE, json={"grader": grader})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_without_a_sandbox_a_run_is_503_and_nothing_runs(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client is told not to try again: only a person can mend it."""
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    body = {"grader": _python("return 1"), "model_sample": "4", "item": {}}
    response = server.raw("POST", RUN, json=body)
    assert response.status_code == 503
    error = response.json()["error"]
    assert error["code"] == "grader_sandbox_unavailable"
    assert "Use Linux 5.13 or newer" in error["message"]
    assert response.headers["x-should-retry"] == "false"


def test_a_trial_runs_python_on_every_answer(server: Server) -> None:
    grader = _python("return float(sample['output_text'] == item['answer'])")
    answers = [{"item_index": 0, "output_text": text} for text in ("4", "5", "4")]
    body = {"grader": grader, "items": [{"answer": "4"}], "answers": answers, "probes": False}
    response = server.raw("POST", "/v1/graders/trial", json=body)
    assert response.status_code == 200, response.text
    assert [one["reward"] for one in response.json()["results"]] == [1.0, 0.0, 1.0]

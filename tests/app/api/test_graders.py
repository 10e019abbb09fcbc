"""graders/run and graders/validate through the official client."""

from typing import Any

import openai
import pytest

from app.graders.result import GradeErrors
from tests.app.api.server import GRADER, Server

RUN, VALIDATE = "/v1/fine_tuning/alpha/graders/run", "/v1/fine_tuning/alpha/graders/validate"
LENGTH = {
    "type": "text_similarity",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "evaluation_metric": "fuzzy_match",
}
MULTI = {
    "type": "multi",
    "name": "both",
    "graders": {"exact": GRADER, "alike": LENGTH},
    "calculate_output": "0.5 * exact + 0.5 * alike",
}
JSON = GRADER | {"input": "{{sample.output_json.answer}}"}


def test_a_grader_runs(client: openai.OpenAI) -> None:
    for answer, reward in (("4", 1.0), ("5", 0.0)):
        run = client.fine_tuning.alpha.graders.run(
            grader=GRADER,  # type: ignore[arg-type]
            item={"answer": "4"},
            model_sample=answer,
        )
        assert run.reward == reward
        assert (run.metadata.name, run.metadata.type) == ("exact", "string_check")
        assert run.metadata.execution_time >= 0
        assert not run.metadata.errors.sample_parse_error


def test_a_run_has_every_key_the_clients_require(server: Server) -> None:
    body = {"grader": GRADER, "item": {"answer": "4"}, "model_sample": "4"}
    answer = server.raw("POST", RUN, json=body).json()
    assert set(answer) == {"reward", "metadata", "sub_rewards", "model_grader_token_usage_per_model"}
    assert answer["sub_rewards"] == answer["model_grader_token_usage_per_model"] == {}
    metadata = answer["metadata"]
    assert set(metadata) == {
        "name",
        "type",
        "errors",
        "execution_time",
        "scores",
        "token_usage",
        "sampled_model_name",
    }
    assert metadata["token_usage"] is None and metadata["sampled_model_name"] is None
    assert metadata["errors"] == GradeErrors().to_dict()
    assert len(metadata["errors"]) == 14


def test_a_multi_grader_tells_its_parts(server: Server) -> None:
    body = {"grader": MULTI, "item": {"answer": "four"}, "model_sample": "four"}
    answer = server.raw("POST", RUN, json=body).json()
    assert answer["reward"] == 1.0
    assert answer["sub_rewards"] == answer["metadata"]["scores"] == {"exact": 1.0, "alike": 1.0}
    assert answer["metadata"]["type"] == "multi"


@pytest.mark.parametrize(
    ("grader", "sample", "flag"),
    [
        (GRADER | {"reference": "{{item.colour}}"}, "4", "invalid_variable_error"),
        (JSON, "no JSON", "sample_parse_error"),
        (JSON, '{"other": 1}', "sample_parse_error"),
        (MULTI | {"calculate_output": "1 / (exact - exact)"}, "4", "formula_parse_error"),
    ],
)
def test_a_failed_grading_is_no_http_error(
    server: Server, grader: dict[str, Any], sample: str, flag: str
) -> None:
    body = {"grader": grader, "item": {"answer": "4"}, "model_sample": sample}
    answer = server.raw("POST", RUN, json=body)
    assert answer.status_code == 200
    assert answer.json()["reward"] == 0.0
    assert [name for name, value in answer.json()["metadata"]["errors"].items() if value] == [flag]


def test_output_json_stands_where_the_sample_parses(server: Server) -> None:
    body = {"grader": JSON, "item": {"answer": "4"}, "model_sample": '{"answer": "4"}'}
    assert server.raw("POST", RUN, json=body).json()["reward"] == 1.0


def test_an_item_is_optional(server: Server) -> None:
    grader = GRADER | {"reference": "4"}
    for extra in ({}, {"item": None}):
        body = {"grader": grader, "model_sample": "4"} | extra
        assert server.raw("POST", RUN, json=body).json()["reward"] == 1.0


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"grader": None}, "grader"),
        ({"grader": {}}, "grader.type"),
        ({"grader": GRADER | {"operation": "near"}}, "grader.operation"),
        ({"grader": GRADER | {"colour": 1}}, "grader.colour"),
        ({"model_sample": 4}, "model_sample"),
        ({"item": "4"}, "item"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_malformed_run_is_refused(server: Server, change: dict[str, Any], param: str) -> None:
    answer = server.raw("POST", RUN, json={"grader": GRADER, "model_sample": "4"} | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_validate_returns_the_plain_form(client: openai.OpenAI, server: Server) -> None:
    nameless = {key: value for key, value in GRADER.items() if key != "name"} | {"operation": "neq"}
    valid = client.fine_tuning.alpha.graders.validate(grader=nameless)  # type: ignore[arg-type]
    assert valid.grader is not None
    assert (valid.grader.type, valid.grader.name) == ("string_check", "string_check")
    listed = MULTI | {"graders": [GRADER, LENGTH | {"name": "alike"}]}
    plain = server.raw("POST", VALIDATE, json={"grader": listed}).json()["grader"]
    assert plain["graders"]["exact"] == GRADER
    # What a job would refuse is refused here.
    constant = GRADER | {"input": "4"}
    for wrong, param in ((constant, "grader"), (GRADER | {"type": "mood"}, "grader.type")):
        with pytest.raises(openai.BadRequestError) as caught:
            client.fine_tuning.alpha.graders.validate(grader=wrong)  # type: ignore[arg-type]
        assert caught.value.param == param

"""The Playground without a script: a form that answers with the whole page, as the API would answer."""

import html
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.core.context import Context
from app.core.tables import File, Job, Model
from app.dashboard import format
from app.graders.spec import parse_grader
from app.services import files, models, saved_graders
from tests.app.dashboard import seed
from tests.app.dashboard.seed import Seeded
from tests.engine import EngineServer, engine_running

FORM = {"role": "user", "content": "one two", "temperature": "0.5", "max_completion_tokens": "64", "n": "1"}
MENTIONS = {
    "type": "string_check",
    "name": "mentions",
    "operation": "like",
    "input": "{{sample.output_text}}",
    "reference": "{{item.word}}",
}


@pytest.fixture
def engine(context: Context) -> Iterator[EngineServer]:
    """An engine for the seeded base model and what is tuned from it."""
    with engine_running() as engine:
        engine.write_providers(context.settings.root, seed.MODEL)
        yield engine


@pytest.fixture
def tuned(context: Context, seeded: Seeded) -> str:
    """The succeeded job's model, with weights an engine could load."""
    with context.db.transaction() as session:
        name = session.get_one(Job, seeded.succeeded).fine_tuned_model or ""
        uri = session.get_one(Model, name).uri or ""
    with context.storage.writing_directory(uri) as folder:
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return name


def post(browser: TestClient, csrf: str, path: str = "/playground", **fields: Any) -> Any:
    """Send the form."""
    return browser.post(path, data={"csrf": csrf, "do": "run"} | FORM | fields)


def test_one_model_answers_on_the_page(browser: TestClient, csrf: str, engine: EngineServer) -> None:
    engine.says = "<b>two</b> one"
    answer = post(browser, csrf, model=seed.MODEL, n="2")
    assert answer.status_code == 200
    assert answer.text.count('data-testid="sample"') == 2
    assert "&lt;b&gt;two&lt;/b&gt; one" in answer.text
    assert "<b>two</b>" not in answer.text
    assert engine.asked == [
        {
            "model": "vendor/base",
            "messages": [{"role": "user", "content": "one two"}],
            "n": 2,
            "temperature": 0.5,
            "top_p": 1.0,
            "max_completion_tokens": 64,
        }
    ]
    assert "tokens read" in answer.text
    assert "client.chat.completions.create(" in answer.text
    # What was typed stays.
    assert ">one two</textarea>" in answer.text


def test_two_models_answer_one_input_and_are_graded(
    browser: TestClient, context: Context, csrf: str, seeded: Seeded, engine: EngineServer, tuned: str
) -> None:
    with context.db.transaction() as session:
        saved, _ = saved_graders.create_grader(
            session, project_id=seeded.project_id, name="mentions", grader=parse_grader(MENTIONS)
        )
        grader_id = saved.id
    item = json.dumps({"word": "two"})
    answer = post(browser, csrf, model=tuned, compare=seed.MODEL, grade_with=grader_id, item=item)
    assert answer.text.count('data-testid="column"') == 2
    assert answer.text.count('data-testid="grader-score"') == 2
    assert answer.text.count("score 1.000") == 2
    assert [asked["messages"] for asked in engine.asked] == [[{"role": "user", "content": "one two"}]] * 2
    # A grader whose field the item lacks gives no score, and says so.
    wrong = post(browser, csrf, model=tuned, grade_with=grader_id, item="{}").text
    assert "Not graded:" in wrong
    assert 'data-testid="grader-score"' not in wrong
    gone = post(browser, csrf, model=tuned, grade_with="grader_gone", item="{}").text
    assert "Not graded:" in gone


def test_a_judge_that_is_served_here_grades(
    browser: TestClient, context: Context, csrf: str, seeded: Seeded, engine: EngineServer
) -> None:
    judge = {
        "type": "score_model",
        "name": "own judge",
        "model": seed.MODEL,
        "input": [{"role": "user", "content": "{{sample.output_text}}"}],
    }
    with context.db.transaction() as session:
        saved, _ = saved_graders.create_grader(
            session, project_id=seeded.project_id, name="own judge", grader=parse_grader(judge)
        )
        grader_id = saved.id
    engine.says = '{"steps": [], "result": 0.25}'
    answer = post(browser, csrf, model=seed.MODEL, grade_with=grader_id)
    assert "score 0.250" in answer.text
    assert "Not graded" not in answer.text


def test_an_answer_in_free_text_need_not_be_json(
    browser: TestClient, context: Context, csrf: str, seeded: Seeded, engine: EngineServer
) -> None:
    with context.db.transaction() as session:
        saved, _ = saved_graders.create_grader(
            session, project_id=seeded.project_id, name="mentions", grader=parse_grader(MENTIONS)
        )
        grader_id = saved.id
    graded = post(
        browser, csrf, model=seed.MODEL, grade_with=grader_id, item='{"word": "two"}',
        response_format='{"type": "text"}',
    )  # fmt: skip
    assert "score 1.000" in graded.text


def test_a_job_whose_file_can_not_be_read_says_so(
    browser: TestClient, context: Context, seeded: Seeded
) -> None:
    with context.db.reading() as session:
        job = session.get_one(Job, seeded.succeeded)
        path = context.storage.path(files.file_uri(session.get_one(File, job.test_file)))
    path.write_bytes(b"not a line\n")
    page = browser.get(f"/playground?job={seeded.succeeded}")
    assert page.status_code == 200
    assert "has a line that can&#39;t be read" in page.text


def test_a_jobs_example_fills_the_form(
    browser: TestClient, csrf: str, seeded: Seeded, tuned: str, engine: EngineServer
) -> None:
    address = (
        browser.get(f"/finetune/{seeded.succeeded}").text.split('href="/playground?', 1)[1].split('"')[0]
    )
    page = browser.get("/playground?" + address.replace("&amp;", "&"))
    assert page.status_code == 200
    assert "Example 1 of the job&#39;s test file" in page.text
    assert "Find the order number in the message. Answer as JSON." in page.text
    assert "&#34;order_number&#34;" in page.text
    assert "The grader of the job" in page.text
    assert f'<option value="{tuned}" selected>' in page.text
    engine.says = '{"order_number": "A12345"}'
    item = {"order_number": "A12345"}
    graded = post(
        browser, csrf, model=tuned, job=seeded.succeeded, grade_with="job", item=json.dumps(item),
        response_format='{"type": "json_object"}',
    )  # fmt: skip
    assert "score 1.000" in graded.text
    assert browser.get("/playground?job=ftjob-none").status_code == 404
    assert "has no example 1001" in browser.get(f"/playground?job={seeded.succeeded}&row=1000").text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": ""}, "Model: Choose a model."),
        ({"content": " "}, "Messages: The last message is empty"),
        ({"n": "9"}, "Samples: At most 8 samples"),
        ({"temperature": "hot"}, "Temperature: This is no number."),
        ({"temperature": "3"}, "Temperature: "),
        ({"response_format": "{"}, "Response format: This can&#39;t be read: not valid JSON"),
        ({"response_format": '"\\ud800"'}, "Response format: A text holds a NUL"),
        ({"response_format": '{"type": NaN}'}, "Response format: This can&#39;t be read: NaN"),
        ({"item": "[" * 100_000}, "Item: This can&#39;t be read: nested"),
        ({"response_format": '{"type": "magic"}'}, "Response format: "),
        ({"item": "[]"}, "Item: The item must be a JSON object"),
    ],
)
def test_what_can_not_be_asked_is_said_at_its_field(
    browser: TestClient, csrf: str, engine: EngineServer, fields: dict[str, str], said: str
) -> None:
    wanted = {"model": seed.MODEL} | fields
    answer = post(browser, csrf, **wanted)
    assert answer.status_code == 422
    assert said in answer.text
    streamed = post(browser, csrf, "/playground/stream", **wanted)
    assert streamed.status_code == 422
    assert html.unescape(said).split(": ", 1)[1] in streamed.json()["message"]
    assert engine.asked == []


def test_messages_are_added_and_removed_without_asking(
    browser: TestClient, csrf: str, engine: EngineServer
) -> None:
    more = post(browser, csrf, model=seed.MODEL, do="add").text
    assert more.count('name="content"') == 2
    fewer = post(
        browser, csrf, model=seed.MODEL, do="remove:0", role=["user", "assistant"], content=["a", "b"]
    )
    assert fewer.text.count('name="content"') == 1
    assert ">b</textarea>" in fewer.text
    assert engine.asked == []


def test_a_model_that_does_not_answer_says_what_to_do(
    browser: TestClient, context: Context, csrf: str, seeded: Seeded, engine: EngineServer, tuned: str
) -> None:
    engine.refusal = (500, {"error": {"message": "no memory left"}})
    broken = post(browser, csrf, model=seed.MODEL).text
    assert 'data-testid="column-error"' in broken
    engine.refusal = None
    with context.db.transaction() as session:
        models.stop_model(session, project_id=seeded.project_id, model_id=tuned)
    stopped = post(browser, csrf, model=tuned, compare=seed.MODEL).text
    assert "was stopped by a person" in stopped
    assert f"Loading it takes about {format.size(538_060_032)} of memory." in stopped
    assert ">Load</button>" in stopped
    # The other column answered all the same.
    assert stopped.count('data-testid="sample"') == 1
    back = browser.post(f"/models/{tuned}/load", data={"csrf": csrf, "next": f"/playground?model={tuned}"})
    assert back.headers["location"] == f"/playground?model={tuned}"
    away = browser.post(f"/models/{tuned}/load", data={"csrf": csrf, "next": "https://elsewhere.example/"})
    assert away.headers["location"].startswith("/models/")
    assert 'data-testid="sample"' in post(browser, csrf, model=tuned).text


def test_a_column_is_streamed_and_ends_with_what_the_page_would_show(
    browser: TestClient, csrf: str, engine: EngineServer
) -> None:
    answer = post(browser, csrf, "/playground/stream", model=seed.MODEL, column="0", n="2")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line]
    texts = ["".join(one["text"] for one in events if one.get("sample") == number) for number in (0, 1)]
    assert texts == ["two one", "two one"]
    assert events[-1]["html"].count('data-testid="sample"') == 2
    assert post(browser, "wrong", "/playground/stream", model=seed.MODEL).status_code == 403

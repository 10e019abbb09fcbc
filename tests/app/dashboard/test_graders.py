"""The library and the lab through HTTP, as a browser without scripts uses them."""

import html
import json
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.core.context import Context
from app.core.tables import Job
from app.services import saved_graders, trial_records
from tests.app.dashboard.seed import MODEL, Seeded
from tests.engine import engine_running

WRONG = """def grade(sample, item):
    answer = sample["output_text"]
    return float(answer == item["order_nummer"])
"""
EXACT = """def grade(sample, item):
    return float(sample["output_text"] == item["order_number"])
"""
SOUND = """def grade(sample, item):
    return float(sample["output_text"].strip().upper() == item["order_number"])
"""


def form(csrf: str, do: str, **values: str) -> dict[str, str]:
    """Return the fields a browser sends."""
    return {"csrf": csrf, "type": "python", "name": "orders", "source": EXACT, "do": do} | values


def on_rows(seeded: Seeded, **values: str) -> dict[str, str]:
    """Return the fields that choose what to try it on."""
    return {"file": seeded.training_file, "right": "{{item.order_number}}"} | values


def save(browser: TestClient, csrf: str, path: str = "/graders/new", **values: str) -> str:
    """Save a grader and return where it is shown."""
    answer = browser.post(path, data=form(csrf, "save", **values))
    assert answer.status_code == 303, answer.text
    return str(answer.headers["location"])


def test_an_empty_library_says_what_to_do(browser: TestClient) -> None:
    text = browser.get("/graders").text
    assert "No graders yet" in text
    assert 'href="/graders/new"' in text


def test_a_chosen_file_gives_the_keys_and_the_right_answer(
    browser: TestClient, csrf: str, seeded: Seeded
) -> None:
    answer = browser.post(
        "/graders/new", data=form(csrf, "rows", file=seeded.training_file, type="string_check")
    )
    assert answer.status_code == 200
    rows = re.findall(r'data-testid="variable-row"><th scope="row"><code>([^<]+)', answer.text)
    assert rows == ["item.order_number", "sample.output_text"]
    assert 'value="{{item.order_number}}"' in answer.text
    untouched = browser.get("/graders/new").text.split('<textarea id="source"')[1]
    source = html.unescape(untouched.split(">", 1)[1].split("</textarea>")[0].lstrip("\n"))
    sent = form(csrf, "rows", file=seeded.training_file, source=source.replace("\n", "\r\n"))
    assert "item[&#34;order_number&#34;]" in browser.post("/graders/new", data=sent).text
    opened = browser.get(f"/graders/new?type=python&file={seeded.training_file}").text
    assert "item[&#34;order_number&#34;]" in opened


def test_validating_names_the_line_the_row_and_the_cure(
    browser: TestClient, csrf: str, seeded: Seeded
) -> None:
    answer = browser.post("/graders/new", data=form(csrf, "validate", source=WRONG, **on_rows(seeded)))
    text = answer.text.split('data-testid="grader-error"')[1]
    assert "Line 3: KeyError: &#39;order_nummer&#39;" in text
    assert "Did you mean &#34;order_number&#34;?" in text
    assert '<div class="wrong-line"><span class="no">3</span>' in text
    assert "Row 0, which it was given" in text
    assert 'data-line="3"' in answer.text


def test_a_source_that_does_not_parse_is_shown_at_its_line(browser: TestClient, csrf: str) -> None:
    text = browser.post(
        "/graders/new", data=form(csrf, "validate", source="def grade(s, i):\n  retrun 1")
    ).text
    assert "Line 2: SyntaxError" in text.split('data-testid="grader-error"')[1]


def test_templates_are_looked_up_in_every_row(browser: TestClient, csrf: str, seeded: Seeded) -> None:
    check = {"type": "string_check", "input": "{{sample.output_text}}", "operation": "eq"}
    sent = form(csrf, "validate", **check, **on_rows(seeded), reference="{{item.order_numbr}}")
    text = browser.post("/graders/new", data=sent).text.split('data-testid="grader-error"')[1]
    assert "Row 0 has no `item.order_numbr`." in text
    assert "Did you mean &#34;order_number&#34;?" in text


def probes(text: str) -> dict[str, str]:
    """Return each probe's outcome by its name."""
    rows = re.findall(
        r'data-testid="probe-row" data-status="(\w+)"><td>(?:<details[^>]*><summary>)?([^<]+)', text
    )
    return {name: status for status, name in rows}


def test_probes_that_break_expectation(browser: TestClient, csrf: str, seeded: Seeded) -> None:
    text = browser.post("/graders/new", data=form(csrf, "try", **on_rows(seeded))).text
    found = probes(text)
    failed = [name for name, status in found.items() if status == "failed"]
    assert failed == ["Reference with spaces", "Reference in small letters"]
    assert "2 of 10 probes failed." in text
    assert "expected 1.00" in text
    sound = browser.post("/graders/new", data=form(csrf, "try", source=SOUND, **on_rows(seeded))).text
    assert set(probes(sound).values()) == {"passed"}


def test_answers_of_ones_own(browser: TestClient, csrf: str, seeded: Seeded) -> None:
    sent = form(csrf, "try", answers="0: no\n0: neither\n1:\n", **on_rows(seeded))
    text = browser.post("/graders/new", data=sent).text
    assert 'data-bars="3,0,0,0,0,0,0,0,0,0"' in text
    assert "0 of 1 prompt mixed: almost no learning signal" in text
    assert text.count('data-testid="graded-sample"') == 3
    refused = browser.post("/graders/new", data=sent | {"answers": "0: a\nb"})
    assert refused.status_code == 422
    assert "line 2 does not begin with the number of a row" in refused.text
    assert "0: a\nb</textarea>" in refused.text


def test_stored_answers_of_a_job(browser: TestClient, csrf: str, seeded: Seeded) -> None:
    body = 'return float(sample["output_json"]["order_number"] == item["order_number"])'
    source = f"def grade(sample, item):\n    {body}"
    sent = form(csrf, "try", source=source, job=seeded.succeeded, step="6")
    text = browser.post("/graders/new", data=sent).text
    assert 'data-testid="grader-histogram"' in text
    assert re.search(r"\d+ of \d+ prompts mixed", text)
    assert 'data-testid="latency"' in text
    broken = sent | {"source": 'def grade(sample, item):\n    return item["gone"]'}
    text = browser.post("/graders/new", data=broken).text
    assert "python_grader_runtime_error" in text.split('data-testid="error-row"')[1]
    assert "line 2, in grade" in text


def test_fresh_answers_of_a_model(browser: TestClient, context: Context, csrf: str, seeded: Seeded) -> None:
    sent = form(csrf, "try", fresh=MODEL, **on_rows(seeded))
    silent = browser.post("/graders/new", data=sent)
    assert silent.status_code == 503
    assert "Nothing was run." in silent.text
    assert "The inference process" in silent.text
    with engine_running() as engine:
        engine.write_providers(context.settings.root, MODEL)
        text = browser.post("/graders/new", data=sent).text
        assert len(engine.asked) == 8
    assert "32 answers, mean 0.00" in text
    assert "0 of 8 prompts mixed: almost no learning signal" in text
    assert "Run on 32 fresh answers" in text
    refused = browser.post("/graders/new", data=sent | {"job": seeded.succeeded})
    assert refused.status_code == 422
    assert 'id="fresh-wrong"' in refused.text
    assert 'id="fresh-wrong"' in browser.post("/graders/new", data=sent | {"fresh": "nobody"}).text


def test_without_rows_nothing_is_tried(browser: TestClient, csrf: str) -> None:
    answer = browser.post("/graders/new", data=form(csrf, "try"))
    assert answer.status_code == 422
    assert "choose a file, or a job" in answer.text


def test_no_sandbox_no_grading(
    browser: TestClient, csrf: str, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.graders.sandbox.landlock.abi", lambda: 0)
    monkeypatch.setattr("app.graders.python.choose", _nothing_holds)
    answer = browser.post("/graders/new", data=form(csrf, "try", **on_rows(seeded)))
    assert answer.status_code == 503
    assert "Nothing was run." in answer.text
    assert "Install bubblewrap" in answer.text
    assert EXACT.splitlines()[0] in answer.text


def _nothing_holds(**_: object) -> Any:
    from app.graders.sandbox.level import SandboxUnavailable

    raise SandboxUnavailable("No sandbox holds. Install bubblewrap.")


def test_versions_are_saved_compared_and_deleted(
    browser: TestClient, context: Context, csrf: str, seeded: Seeded
) -> None:
    first = save(browser, csrf)
    path = first.split("?")[0]
    assert browser.get(first).status_code == 200
    second = save(browser, csrf, f"{path}?v=1", source=SOUND, inner="orders", **on_rows(seeded))
    assert "v=2&against=1" in second
    text = browser.get(second).text
    assert "Version 1 to version 2" in text.split('data-testid="version-diff"')[1]
    assert '<div class="added"><code>+    return float(sample[&#34;output_text&#34;].strip()' in text
    assert '<div class="gone"><code>-    return float(sample[&#34;output_text&#34;] ==' in text
    assert f'<option value="{seeded.training_file}" selected>' in text
    again = save(browser, csrf, path, source=SOUND, inner="orders", name="orders, renamed")
    assert "v=2" in again
    row = browser.get("/graders").text.split('data-testid="grader-row"')[1]
    assert "orders, renamed" in row
    assert "Not tried yet" in row
    assert EXACT.splitlines()[1].split("==")[0].strip()[:12] in browser.get(f"{path}?v=1").text
    assert browser.get(f"{path}?v=3").status_code == 404
    assert browser.post(f"{path}/delete", data={"csrf": csrf}).status_code == 303
    assert browser.get(path).status_code == 404


def test_a_trial_is_remembered_with_its_content(
    browser: TestClient, context: Context, csrf: str, seeded: Seeded
) -> None:
    browser.post("/graders/new", data=form(csrf, "try", **on_rows(seeded)) | {"name": ""})
    path = save(browser, csrf).split("?")[0]
    assert "2 of 10 probes failed" in browser.get("/graders").text
    with context.db.reading() as session:
        version = saved_graders.get_version(
            session, project_id=seeded.project_id, grader_id=path.split("/")[-1]
        )
    record = trial_records.find(context.storage, project_id=seeded.project_id, content=version.content)
    assert record is not None
    assert record.failed == ("whitespace", "lower_case")
    browser.post(path, data=form(csrf, "try", inner="orders", answers="0: a\n0: b", **on_rows(seeded)))
    record = trial_records.find(context.storage, project_id=seeded.project_id, content=version.content)
    assert record is not None
    assert (record.answers, record.prompts, record.mixed) == (2, 1, 0)
    assert trial_records.forget_old(context.storage, before=record.at + 1) == 1
    assert trial_records.find(context.storage, project_id=seeded.project_id, content=version.content) is None


def test_a_name_is_needed_to_save(browser: TestClient, csrf: str) -> None:
    answer = browser.post("/graders/new", data=form(csrf, "save", name=" "))
    assert answer.status_code == 422
    assert 'id="name-wrong"' in answer.text
    assert "No graders yet" in browser.get("/graders").text


def test_a_grader_is_deleted_and_made_by_its_owner_alone(
    browser: TestClient, csrf: str, seeded: Seeded
) -> None:
    path = save(browser, csrf).split("?")[0]
    assert browser.post(path, data=form("wrong", "save")).status_code == 403
    assert browser.post(f"{path}/delete", data={"csrf": "wrong"}).status_code == 403
    assert browser.get("/graders/grader_none").status_code == 404
    assert browser.get("/graders/new?type=magic").status_code == 404


def test_jobs_that_used_a_version_are_named(
    browser: TestClient, context: Context, csrf: str, seeded: Seeded
) -> None:
    path = save(browser, csrf).split("?")[0]
    with context.db.transaction() as session:
        version = {"id": path.split("/")[-1], "version": 1, "sha256": "0" * 64}
        session.get_one(Job, seeded.succeeded).saved_graders = {"method.reinforcement.grader": version}
    text = browser.get(path).text.split('data-testid="version-row"')[1]
    assert f'href="/finetune/{seeded.succeeded}"' in text
    assert 'data-label="Jobs">1<' in browser.get("/graders").text


def test_openais_json_can_be_pasted(browser: TestClient, csrf: str) -> None:
    pasted = {"type": "string_check", "input": "{{sample.output_text}}", "reference": "x", "operation": "neq"}
    answer = browser.post("/graders/new", data=form(csrf, "save", type="json", whole=json.dumps(pasted)))
    assert answer.status_code == 303
    text = browser.get(answer.headers["location"]).text
    assert '<option value="ne" selected>' in text


def run_form(csrf: str, seeded: Seeded, **values: str) -> dict[str, str]:
    """Return the fields of the form that starts a run."""
    return {"csrf": csrf, "model": "smollm2-135m-instruct", "training_file": seeded.training_file} | values


def test_a_run_takes_a_saved_version(
    browser: TestClient, context: Context, csrf: str, seeded: Seeded
) -> None:
    grader_id = save(browser, csrf, source=SOUND).split("?")[0].split("/")[-1]
    text = browser.get(f"/finetune/new?grader={grader_id}&v=1").text
    assert f'<option value="{grader_id}@1" selected>orders · version 1</option>' in text
    assert "Nobody has run probes on this version." in text
    sent = run_form(csrf, seeded, saved_grader=f"{grader_id}@1", grader="{not json")
    answer = browser.post("/finetune/new", data=sent)
    assert answer.status_code == 303
    job_id = answer.headers["location"].split("/")[-1]
    with context.db.reading() as session:
        job = session.get_one(Job, job_id)
        assert job.method["reinforcement"]["grader"]["source"] == SOUND
    assert (
        f'<a href="/graders/{grader_id}?v=1">orders, version 1</a>'
        in browser.get(f"/finetune/{job_id}/config").text
    )
    again = browser.get(f"/finetune/new?from={job_id}").text
    assert f'<option value="{grader_id}@1" selected>' in again
    browser.post(f"/graders/{grader_id}/delete", data={"csrf": csrf})
    assert f"{grader_id}, version 1 (deleted)" in browser.get(f"/finetune/{job_id}/config").text
    assert f"{grader_id}@1" not in browser.get(f"/finetune/new?from={job_id}").text


def test_a_version_that_can_be_gamed_is_asked_for_twice(
    browser: TestClient, csrf: str, seeded: Seeded
) -> None:
    browser.post("/graders/new", data=form(csrf, "try", **on_rows(seeded)))
    path = save(browser, csrf).split("?")[0]
    value = f"{path.split('/')[-1]}@1"
    sent = run_form(csrf, seeded, saved_grader=value)
    refused = browser.post("/finetune/new", data=sent)
    assert refused.status_code == 422
    assert "2 of 10 probes failed: reference with spaces, reference in small letters." in refused.text
    assert 'id="saved_grader-wrong"' in refused.text
    assert "Use version" not in refused.text
    assert browser.post("/finetune/new", data=sent | {"accepted": "grader_other@1"}).status_code == 422
    assert browser.post("/finetune/new", data=sent | {"accepted": value}).status_code == 303


def test_a_better_version_is_offered_and_keeps_the_form(
    browser: TestClient, csrf: str, seeded: Seeded
) -> None:
    browser.post("/graders/new", data=form(csrf, "try", **on_rows(seeded)))
    path = save(browser, csrf).split("?")[0]
    sound = {"source": SOUND, "inner": "orders"}
    browser.post(path, data=form(csrf, "try", **sound, **on_rows(seeded)))
    save(browser, csrf, path, **sound)
    first, second = (f"{path.split('/')[-1]}@{number}" for number in (1, 2))
    assert f'name="use" value="{second}"' in browser.get(f"/finetune/new?grader={first[:-2]}&v=1").text
    answer = browser.post(
        "/finetune/new", data=run_form(csrf, seeded, saved_grader=first, use=second, suffix="s")
    )
    assert answer.status_code == 200
    assert f'<option value="{second}" selected>' in answer.text
    assert 'value="s"' in answer.text


@pytest.mark.parametrize("value", ["grader_none@1", "x", "grader_x@y"])
def test_a_version_that_is_not_there_is_refused_at_its_field(
    browser: TestClient, csrf: str, seeded: Seeded, value: str
) -> None:
    answer = browser.post("/finetune/new", data=run_form(csrf, seeded, saved_grader=value))
    assert answer.status_code == 422
    assert 'id="saved_grader-wrong"' in answer.text

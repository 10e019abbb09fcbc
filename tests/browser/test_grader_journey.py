"""A person writes a grader, finds out in the lab that it is bad, mends it, and uses it, in a real browser.

Journey J2 of the design: every answer is graded in the real sandbox.
"""

from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

from app.core.context import Context
from app.core.tables import Job
from app.services import projects
from tests import factories
from tests.browser.conftest import Service, Watched
from tests.browser.test_job_journey import sign_in

Open = Callable[..., Watched]

CODES = ("K35.80", "J45.909", "E11.9", "I10", "M54.5", "N39.0", "J06.9", "K21.9")
WRONG_KEY = """def grade(sample, item):
    said = sample["output_text"]
    return float(item["cod"] in said)
"""
LENIENT = WRONG_KEY.replace('"cod"', '"code"').replace("said)", "said[:400])")
SOUND = """def grade(sample, item):
    said = sample["output_text"].strip().upper()
    if said == item["code"]:
        return 1.0
    # The right chapter, and one code alone.
    return 0.3 if said[:1] == item["code"][:1] and len(said) <= 8 else 0.0
"""


def make_file(context: Context) -> None:
    """Store eight rows with a code each."""
    rows = [factories.question(f"Which code is case {n}?", "") for n in range(len(CODES))]
    for row, code in zip(rows, CODES, strict=True):
        del row["answer"]
        row["code"] = code
    with context.db.transaction() as session:
        factories.make_base_model(session, "tiny")
        factories.make_file(
            session,
            projects.default_project(session),
            context.storage,
            data=factories.jsonl(rows),
            filename="codes.jsonl",
        )


def answers() -> str:
    """Return four answers a row: seldom right as they stand, half of them in the right chapter."""
    lines = []
    for row, code in enumerate(CODES):
        near = f"{code[0]}99" if row % 2 else "Z99"
        lines += [f"{row}: Z00", f"{row}: {near}", f"{row}: Z01", f"{row}: Z02"]
    lines[1] = f"0: {CODES[0]}"
    return "\n".join(lines)


def probe(page: Page, name: str) -> Locator:
    """Return a probe's row."""
    return page.get_by_test_id("probe-row").filter(has_text=name)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_bad_grader_is_mended_before_it_costs_anything(
    service: Service, open_page: Open, scheme: str
) -> None:
    make_file(service.context)
    watched = open_page(service.url, scheme=scheme)
    page = sign_in(watched, service)

    # 1. The library is empty; a chosen file gives the keys.
    page.get_by_role("link", name="Graders", exact=True).click()
    watched.check("Graders")
    page.get_by_role("link", name="Write a grader").click()
    page.get_by_label("Rows of a file").select_option(index=1)
    page.get_by_role("button", name="Show its keys").click()
    expect(page.get_by_test_id("variable-row")).to_have_count(2)
    expect(page.get_by_test_id("variable-row").first).to_contain_text("item.code")
    expect(page.get_by_label("Right answer")).to_have_value("{{item.code}}")
    watched.check("New grader")

    # 2. A wrong key is found by validating: the line, the row, the cure.
    page.get_by_role("textbox", name="Source").fill(WRONG_KEY)
    page.get_by_role("button", name="Validate").click()
    error = page.get_by_test_id("grader-error")
    expect(error).to_contain_text("Line 3: KeyError: 'cod'")
    expect(error).to_contain_text('Did you mean "code"?')
    expect(page.locator(".gutter .wrong-line")).to_have_text("3")
    page.get_by_role("button", name="Go to line 3").click()
    assert page.evaluate("getSelection().toString()").strip() == 'return float(item["cod"] in said)'
    page.get_by_text("Row 0, which it was given").click()
    expect(error).to_contain_text('"code": "K35.80"')
    watched.check("New grader")

    # 3. It runs, and two probes show that it can be gamed.
    page.get_by_role("textbox", name="Source").fill(LENIENT)
    page.get_by_role("button", name="Validate").click()
    expect(page.get_by_test_id("finding-row").filter(has_text="Python runs")).to_contain_text("passed")
    expect(page.get_by_test_id("grader-error")).to_have_count(0)

    # 4. Real outputs: almost all earn nothing.
    page.get_by_text("Other answers to grade").click()
    page.get_by_label("Answers of your own").fill(answers())
    page.get_by_role("button", name="Run probes and answers").click()
    expect(probe(page, "All references at once")).to_contain_text("expected below 1.00")
    expect(page.locator("[data-testid=probe-row][data-status=failed]")).to_have_count(2)
    expect(page.get_by_test_id("grader-histogram")).to_have_attribute("data-bars", "31,0,0,0,0,0,0,0,0,1")
    expect(page.get_by_test_id("signal-meter")).to_contain_text(
        "1 of 8 prompts mixed: almost no learning signal"
    )
    watched.check("New grader")
    page.get_by_label("Name").fill("codes")
    page.get_by_role("button", name="Save grader").click()
    expect(page.get_by_text("version 1 of 1")).to_be_visible()

    # 5. Partial credit for the right chapter, and nothing for a list.
    page.get_by_role("textbox", name="Source").fill(SOUND)
    expect(page.get_by_text("version 1 of 1, unsaved changes")).to_be_visible()
    page.get_by_text("Other answers to grade").click()
    page.get_by_label("Answers of your own").fill(answers())
    page.get_by_role("button", name="Run probes and answers").click()
    expect(page.locator("[data-testid=probe-row][data-status=passed]")).to_have_count(10)
    expect(page.get_by_test_id("signal-meter")).to_contain_text("5 of 8 prompts mixed")
    expect(page.get_by_test_id("latency")).to_contain_text("at the median")

    # 6. Saved as version 2, what changed stands beside it.
    page.get_by_role("button", name="Save version 2").click()
    diff = page.get_by_test_id("version-diff")
    expect(diff.get_by_role("heading")).to_have_text("Version 1 to version 2")
    expect(diff.locator(".added")).to_have_count(5)
    expect(page.get_by_test_id("version-row")).to_have_count(2)
    watched.check("codes")
    address = page.url.split("?")[0]
    page.get_by_role("link", name="Graders", exact=True).first.click()
    expect(page.get_by_test_id("grader-row")).to_contain_text("All 10 probes passed")
    watched.check("Graders")

    # 7. A run with version 1 must be asked for twice; version 2 starts at once.
    page.goto(f"{address}?v=1")
    page.get_by_role("link", name="Use in a run").click()
    failed = page.get_by_test_id("readiness-item").filter(has_text="2 of 10 probes failed")
    expect(failed).to_contain_text("all references at once")
    expect(page.locator("#grader")).to_be_hidden()
    page.locator("#training_file").select_option(index=1)
    page.get_by_role("button", name="Start run").click()
    expect(page.locator("#summary")).to_contain_text("2 of 10 probes failed")
    expect(page.get_by_label("Start a run with it all the same")).to_be_visible()
    watched.check("Create a run")
    page.get_by_role("button", name="Use version 2").click()
    expect(page.get_by_label("Saved grader")).to_have_value(f"{address.split('/')[-1]}@2")
    expect(page.get_by_text("All 10 probes are as expected.")).to_be_visible()
    watched.check("Create a run")
    page.get_by_role("button", name="Start run").click()
    expect(page.get_by_test_id("job-status")).to_be_visible()
    job_id = page.url.split("/")[-1]
    with service.context.db.reading() as session:
        recorded = session.get_one(Job, job_id).saved_graders
    assert recorded is not None
    assert recorded["method.reinforcement.grader"]["version"] == 2
    page.goto(f"{service.url}/finetune/{job_id}/config")
    page.get_by_role("link", name="codes, version 2").click()
    expect(page.get_by_test_id("version-row").first).to_contain_text("tiny")

"""OpenAI's clients, unmodified, drive the whole running service through one list of steps."""

import json
from uuid import uuid4

import pytest

from app.core.methods import REINFORCEMENT
from tests.clients.drivers import DRIVERS
from tests.clients.scenario import HERE, prepare
from tests.clients.stage import Stage


@pytest.mark.parametrize("client", list(DRIVERS))
def test_the_client_cannot_tell_the_difference(stage: Stage, client: str) -> None:
    """Every step answers as OpenAI would, or raises the client's own exception with its fields set."""
    scenario = prepare(client, {**stage.given, "run": uuid4().hex, "once": uuid4().hex})
    outcomes = DRIVERS[client](scenario, base_url=stage.base_url, api_key=stage.service.key())
    wrong = scenario.carry_out(outcomes)
    print(f"SCENARIO {client} {len(scenario.steps) - len(wrong)}/{len(scenario.steps)} steps")
    assert not wrong, "\n".join(wrong) + stage.service.logs()


def test_the_scenario_names_each_step_once() -> None:
    """A step's name is what a failure is found by."""
    names = [step["name"] for step in json.loads((HERE / "scenario.json").read_text())["steps"]]
    assert len(set(names)) == len(names)


def test_the_scenario_sets_every_hyperparameter() -> None:
    """A hyperparameter that joins the wire joins the scenario."""
    steps = json.loads((HERE / "scenario.json").read_text())["steps"]
    [step] = [step for step in steps if step["name"] == "create a job with every hyperparameter"]
    given = step["with"]["method"]["reinforcement"]["hyperparameters"]
    assert set(given) == {one.name for one in REINFORCEMENT} | {"reasoning_effort"}

"""Models of a real inference process as the web process speaks of them: stopped, loaded, refused."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.errors import Unavailable
from app.core.tables import Model
from app.services import inference, models, serving
from tests.factories import make_project
from tests.worker.serving.conftest import TUNED, Served, Serving, add_model

DAMAGED = "ft:tiny:personal::dddddddd"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A process of each test's own."""
    with Serving(tmp_path) as found:
        yield found


@pytest.fixture
def project_id(served: Served) -> str:
    """A project that owns the tuned models."""
    with served.context.db.transaction() as session:
        project = make_project(session)
        for name in TUNED:
            session.get_one(Model, name).project_id = project.id
        return project.id


def _state(served: Served, project_id: str, name: str = TUNED[0]) -> str:
    return serving.serving(served.context, project_id=project_id, model_id=name).state


def _adapters(served: Served) -> list[str]:
    return [name for base in served.client.get("/health").json()["models"] for name in base["adapters"]]


def test_a_stopped_model_leaves_memory_and_loading_brings_it(served: Served, project_id: str) -> None:
    given = {"project_id": project_id, "model_id": TUNED[0]}
    assert _state(served, project_id) == "ready"
    serving.warm(served.context, **given)
    assert (_state(served, project_id), _adapters(served)) == ("loaded", [TUNED[0]])
    serving.stop(served.context, **given)
    assert (_state(served, project_id), _adapters(served)) == ("stopped", [])
    with pytest.raises(Unavailable, match="stopped by a person"):
        inference.served(served.context, project_id=project_id, name=TUNED[0])
    serving.load(served.context, **given)
    assert _state(served, project_id) == "ready"
    serving.warm(served.context, **given)
    assert (_state(served, project_id), _adapters(served)) == ("loaded", [TUNED[0]])
    # A stop that the process did not hear of is said again.
    with served.context.db.transaction() as session:
        models.stop_model(session, **given)
    assert _adapters(served) == [TUNED[0]]
    serving.stop(served.context, **given)
    assert _adapters(served) == []
    serving.load(served.context, **given)
    assert served.text(model=TUNED[0], temperature=0)


def test_what_only_a_person_can_mend_is_not_worth_asking_again(served: Served, project_id: str) -> None:
    folder = served.context.storage.path("jobs/damaged")
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"nothing")
    add_model(served.context, DAMAGED, "tiny", "jobs/damaged")
    with served.context.db.transaction() as session:
        session.get_one(Model, DAMAGED).project_id = project_id
    found = inference.served(served.context, project_id=project_id, name=DAMAGED)
    body = {"model": DAMAGED, "messages": [{"role": "user", "content": "a"}]}
    with pytest.raises(Unavailable, match="can't be loaded") as refused:
        asyncio.run(inference.ask(found, body))
    assert (refused.value.code, refused.value.retry_after) == ("model_not_loadable", None)

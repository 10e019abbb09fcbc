"""A running server and the official client on it."""

from collections.abc import Iterator

import openai
import pytest

from app.core import migrate
from app.core.settings import Settings
from tests.app.api.server import LINES, METHOD, MODEL, Server, serving


@pytest.fixture
def api_settings(settings: Settings) -> Settings:
    """Settings with limits small enough to be reached."""
    return settings.model_copy(update={"max_file_bytes": 200_000, "max_json_bytes": 50_000})


@pytest.fixture
def server(request: pytest.FixtureRequest, api_settings: Settings) -> Iterator[Server]:
    """A running server on a fresh SQLite database, or on Postgres by indirect parameter."""
    if getattr(request, "param", "sqlite") == "postgres":
        # Made anew: a copy would take over what the original has worked out.
        values = api_settings.model_dump() | {"database_url": request.getfixturevalue("postgres_url")}
        api_settings = Settings(**values)
    migrate.upgrade(api_settings)
    with serving(api_settings) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    """The official client, with a key of the default project. It never retries."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:
        yield client


@pytest.fixture
def training_file(client: openai.OpenAI) -> str:
    """The id of an uploaded training file."""
    return client.files.create(file=("train.jsonl", LINES), purpose="fine-tune").id


@pytest.fixture
def job_id(client: openai.OpenAI, training_file: str) -> str:
    """The id of a created job."""
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=training_file, method=METHOD)  # type: ignore[arg-type]
    return job.id

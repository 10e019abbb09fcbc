"""Models: a person stops one and loads it again; what is another project's they can't."""

import pytest

from app.core.db import Database
from app.core.errors import Forbidden, NotFound
from app.services import models, permissions
from tests.factories import make_base_model, make_job, make_project

TUNED = "ft:tiny:personal::AbCd1234"


def test_a_model_is_stopped_and_loaded(database: Database) -> None:
    with database.transaction() as session:
        project, other = make_project(session), make_project(session, "Other")
        base = make_base_model(session)
        models.add_tuned(
            session, job=make_job(session, project), model_id=TUNED, kind="tuned", uri="x", details={}
        )
        stopped = models.stop_model(session, project_id=project.id, model_id=TUNED)
        assert stopped.stopped_at is not None
        loaded = models.load_model(session, project_id=project.id, model_id=TUNED)
        assert loaded.stopped_at is None
        with pytest.raises(Forbidden, match=r"base model, and only .* can be stopped"):
            models.stop_model(session, project_id=project.id, model_id=base.id)
        with pytest.raises(NotFound):
            models.stop_model(session, project_id=other.id, model_id=TUNED)
        permissions.create_permissions(session, project_id=project.id, model_id=TUNED, project_ids=[other.id])
        with pytest.raises(Forbidden, match="another project"):
            models.stop_model(session, project_id=other.id, model_id=TUNED)


def test_no_base_model_stays_stopped(database: Database) -> None:
    """Nobody could load it again."""
    with database.transaction() as session:
        base = make_base_model(session)
        base.stopped_at = 1.0
        models.register_base_models(session, found={base.id: {}})
        assert base.stopped_at is None

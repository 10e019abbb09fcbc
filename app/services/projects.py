"""Projects: what keys, files and jobs belong to. One exists from the first start."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core import clock
from app.core.errors import InvalidRequest
from app.core.ids import new_id
from app.core.tables import Project


def default_project(session: Session) -> Project:
    """Return the oldest project, making it on the first start."""
    project = session.scalars(select(Project).order_by(Project.created_at, Project.id).limit(1)).first()
    if project is None:
        project = Project(id=new_id("project"), name="Default project", created_at=clock.now())
        session.add(project)
        session.flush()
    return project


def create_project(session: Session, *, name: str) -> Project:
    """Insert a project. Raises: InvalidRequest."""
    name = name.strip()
    if not 1 <= len(name) <= 255 or not name.isprintable():
        raise InvalidRequest("A project's name has 1 to 255 printable characters.", param="name")
    project = Project(id=new_id("project"), name=name, created_at=clock.now())
    session.add(project)
    session.flush()
    return project


def get_project(session: Session, *, project_id: str) -> Project:
    """Return a project that is known to exist, as its key or login says."""
    return session.get_one(Project, project_id)


def is_there(session: Session, *, project_id: str) -> bool:
    """Say whether there is such a project."""
    return session.get(Project, project_id) is not None

"""What some kinds of graders need beside the answer: judge models, the way out to endpoints, a sandbox.

Built once by whoever grades (the web process, a job's trainer) and handed to `grade()`. A kind whose means
is absent gives a missing grade: it never falls back on something less safe.
"""

from dataclasses import dataclass

from app.graders.endpoint import Endpoints
from app.graders.judge import Judges
from app.graders.python import PythonGraders


@dataclass(frozen=True, slots=True)
class Means:
    """The parts at hand; None is a kind that cannot be graded here."""

    judges: Judges | None = None
    endpoints: Endpoints | None = None
    python: PythonGraders | None = None


NO_MEANS = Means()

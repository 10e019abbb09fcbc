"""The running server and the clients of the API's own tests, for the details of the wire."""

from tests.app.api.conftest import api_settings, client, job_id, server, training_file

__all__ = ["api_settings", "client", "job_id", "server", "training_file"]

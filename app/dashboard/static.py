"""Serves /static. Every address there names a version or a digest, so browsers may keep what they got."""

from os import PathLike, stat_result

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope


class Static(StaticFiles):
    """Static files that never change under one address."""

    def file_response(
        self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Return the file, kept by the browser for a year when its address names its content."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        is_versioned = "@" in scope["path"] or b"v=" in scope["query_string"]
        response.headers["Cache-Control"] = (
            "public, max-age=31536000, immutable" if is_versioned else "no-cache"
        )
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

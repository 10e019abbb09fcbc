"""Addresses that more than one page links to: a model's page, and the Playground with a model in it.

A model's name may hold slashes and colons; how it stands in an address is decided here.
"""

from urllib.parse import quote, urlencode


def model(model_id: str) -> str:
    """Return where a model's page is."""
    return f"/models/{quote(model_id)}"


def playground(model_id: str, *, compare: str | None = None, job_id: str | None = None) -> str:
    """Return where a model is tried, beside another and on an example of a job if these are given."""
    told = {"model": model_id, "compare": compare, "job": job_id}
    return "/playground?" + urlencode({name: value for name, value in told.items() if value})

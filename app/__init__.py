"""Tunesmith's web side: core, graders, services and the two faces (API and dashboard).

Nothing below this package imports torch or the worker; `pyproject.toml` holds the contracts.
"""

"""Runs a user's Python where it can hurt nobody.

`syscalls seccomp landlock confine source call zygote` run inside the sandbox: they import the standard
library and each other, nothing else, and travel there as text. `paths launch process level` run outside.
Called by `app.graders.python`.

Source: reliability.md §3.
"""

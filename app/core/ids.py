"""Identifiers: a prefix that names the noun and a random part nobody can guess.

Source: the id shapes of OpenAI's API reference (`file-…`, `ftjob-…`, `ftckpt_…`).
"""

import secrets
import string

_ALPHABET = string.ascii_letters + string.digits

PREFIXES = {
    "project": "proj_",
    "key": "key_",
    "file": "file-",
    "upload": "upload_",
    "part": "part_",
    "job": "ftjob-",
    "event": "ftevent-",
    "checkpoint": "ftckpt_",
    "permission": "cp_",
    "export": "export_",
    "rollout": "rollout_",
    "grader": "grader_",
    "grader_version": "gradver_",
    "webhook": "we_",
    "webhook_event": "evt_",
    "delivery": "wh_",
    "request": "req_",
    "completion": "chatcmpl-",
    "response": "resp_",
    "message": "msg_",
    "reasoning": "rs_",
    "function_call": "fc_",
    "call": "call_",
    "call_output": "fco_",
    "login": "login_",
}


def new_id(noun: str) -> str:
    """Return a fresh id for `noun`, 24 random characters after its prefix (about 142 bits)."""
    return PREFIXES[noun] + random_text(24)


def random_text(length: int) -> str:
    """Return `length` random letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def random_hex(length: int) -> str:
    """Return `length` random hexadecimal digits."""
    return secrets.token_hex((length + 1) // 2)[:length]

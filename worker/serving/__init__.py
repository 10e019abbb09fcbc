"""The inference process: the engine's decode loop behind a queue, spoken to in OpenAI's chat completions.

`__main__.py` assembles it; `api.py` is its face, `house.py` the models and the one thread that computes. It
reads which model lies where from the database and writes nothing but its heartbeat.
"""

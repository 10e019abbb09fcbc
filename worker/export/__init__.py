"""Exports: a tuned model written as an archive in one of three forms, and held against the trained model.

`python -m worker.export EXPORT_ID TOKEN PARENT` builds one. `source` says what is exported, `forms` and
`gguf` write it, `parity` is the gate, `card` tells of it, `archive` packs it. Training is the engine's.
"""

"""The training engine: base model, prompts and scoring function in, LoRA adapter and numbers out.

It knows no database, no queue and nothing of ours outside this folder, so it can be read, tested and reused
alone. `worker.runner` drives it; start reading at `reinforcement.py`.
"""

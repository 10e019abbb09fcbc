"""What runs jobs: Celery tasks, the supervisor, the trainer process and the engine."""

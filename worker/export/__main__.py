"""The exporter process: `python -m worker.export EXPORT_ID TOKEN PARENT`, one for each claim of an export.

Builds, checks, packs, and only then names the archive in its row. Started by `worker/exporter.py`, which
owns the lease; a trainer that runs beside it comes first.
"""

import errno
import gc
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from app.core import clock
from app.core.context import Context
from app.core.errors import StorageFull
from app.core.settings import Settings
from app.services import exports
from app.services.exports import Lease, LeaseLost
from worker.engine.weights import weight_files
from worker.export import archive
from worker.export.source import ExportImpossible, Source

logger = logging.getLogger("worker.export")

# Exit codes the exporter reads.
DONE, CRASHED, LOST = 0, 1, 3
# What must stay free on the disk beside the archive.
SPARE_BYTES = 256 * 1024 * 1024
# Behind a trainer and behind answers, which keep their pace.
NICENESS = 19


class Telling:
    """Tells the row how far the building is, at most twice a second."""

    def __init__(self, context: Context, lease: Lease) -> None:
        self._context = context
        self._lease = lease
        self._told = 0.0

    def stage(self, stage: str, start: float, end: float) -> Callable[[float], None]:
        """Begin a stage, a part of the whole; return what hears of its share done. Raises: LeaseLost."""
        self._tell(stage, start)

        def on_progress(share: float) -> None:
            if time.monotonic() - self._told > 0.5:
                self._tell(stage, start + share * (end - start))

        return on_progress

    def _tell(self, stage: str, progress: float) -> None:
        self._told = time.monotonic()
        with self._context.db.transaction() as session:
            exports.tell(session, lease=self._lease, stage=stage, progress=progress)


def build(context: Context, lease: Lease) -> None:
    """Build one export and offer it, or say why it is not offered.

    Raises: LeaseLost when the model or the export was deleted, or the export is another's.
    """
    telling = Telling(context, lease)
    telling.stage("Looking at the model", 0.0, 0.0)
    source = Source.of(context, lease.export_id)
    uri = exports.uri_of(source.job.id, source.form, lease)
    # A folder while it is made, the archive alone in the end.
    working = context.storage.path(f"{uri}{exports.BUILDING}")
    for left in working.parent.glob(f"{source.form}-{lease.export_id}.*{exports.BUILDING}"):
        shutil.rmtree(left, ignore_errors=True)  # a killed try's, whose room this one needs
    try:
        working.mkdir(parents=True)
        _check_room(working, source)
        _build(context, lease, source, telling, working, uri)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _build(context: Context, lease: Lease, source: Source, telling: Telling, working: Path, uri: str) -> None:
    # Here and not above: torch takes seconds to load, and the row should say so.
    from worker.engine.policy import Policy
    from worker.export import card, forms, parity

    folder = working / "files"
    folder.mkdir()
    telling.stage("Loading the trained model", 0.02, 0.1)
    policy = Policy.load(source.base_dir, config=source.config(context.settings.threads or None))
    policy.load_adapter(source.adapter_dir)
    asking = telling.stage("Asking the trained model", 0.1, 0.35)
    answers = parity.ask(policy, source.own, source.general, asking)
    del policy
    gc.collect()
    telling.stage("Writing the weights", 0.35, 0.5)
    forms.write(source, folder)
    gc.collect()
    telling.stage("Loading the archive's model", 0.5, 0.55)
    found = parity.compare(
        answers,
        forms.Loaded.of(source, folder),
        dtype=forms.dtype_of(source),
        on_progress=telling.stage("Comparing both models", 0.55, 0.9),
    )
    gc.collect()
    if found.faults:
        reason = f"It does not answer as the trained model does. {' '.join(found.faults)}"
        with context.db.transaction() as session:
            exports.refuse(session, lease=lease, reason=reason, parity=found.wire())
        return
    telling.stage("Packing the archive", 0.9, 1.0)
    hashes = {path.name: archive.sha256_of(path) for path in weight_files(source.base_dir)}
    text = card.write_card(source, found, hashes, clock.now())
    (folder / "README.md").write_text(text, encoding="utf-8")
    size, digest = archive.pack(folder, working / "archive.zip", root=_root(source))
    context.storage.adopt(working / "archive.zip", uri)
    try:
        with context.db.transaction() as session:
            exports.offer(session, lease=lease, uri=uri, size=size, sha256=digest, parity=found.wire())
    except BaseException:
        context.storage.remove(uri)
        raise


def _root(source: Source) -> str:
    plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in source.model_id)
    return f"{plain}-{source.form}"


def _check_room(folder: Path, source: Source) -> None:
    needed = 2 * source.weights_bytes + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageFull(
            f"The disk has {free / 1e9:.1f} GB free; building this archive takes {needed / 1e9:.1f} GB."
        )


def _watch(parent: int) -> None:
    """End this process when the worker is gone: nobody would renew its lease."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(LOST)


def main(export_id: str, token: int, parent: int) -> int:
    """Build one claimed export and return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    # Before torch is loaded (docs/decisions/passive-waiting.md). The GPU is the trainer's, and in 32 bits
    # on a processor the numbers tell most.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["TQDM_DISABLE"] = "1"
    logging.getLogger("gguf").setLevel(logging.WARNING)
    os.nice(NICENESS)
    threading.Thread(target=_watch, args=(parent,), name="watch", daemon=True).start()
    context = Context.build(Settings())
    lease = Lease(export_id, token)
    try:
        build(context, lease)
    except LeaseLost:
        logger.info("export %s is no longer this process's", export_id)
        return LOST
    except Exception as problem:  # boundary: the row tells what went wrong
        if not _is_foreseen(problem):
            logger.exception("export %s failed", export_id)
        return _give_up(context, lease, problem)
    return DONE


def _is_foreseen(problem: Exception) -> bool:
    is_full = isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT)
    return is_full or isinstance(problem, ExportImpossible | StorageFull)


def _give_up(context: Context, lease: Lease, problem: Exception) -> int:
    told = str(problem) if _is_foreseen(problem) else f"{type(problem).__name__}: {problem}"
    try:
        with context.db.transaction() as session:
            exports.fail(session, lease=lease, reason=told[:2000])
    except LeaseLost:
        return LOST
    return DONE if _is_foreseen(problem) else CRASHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

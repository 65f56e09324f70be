#!/usr/bin/env bash
# Everything that wants a GPU, in one command: the tests marked gpu, throughput, searching an index, both stages of
# training at the sizes of the paper (ViT-L/14, 8B), and nano trained from nothing.
#
#   benchmarks/gpu/run.sh [STEP ...]      steps: tests throughput index stage1 stage2 train; all if none is named
#
# PYTHON chooses the interpreter (default: .venv/bin/python, else python3); it needs a torch built for CUDA.
# The step index uses FAISS on the GPU where the installed wheel has it (faiss-gpu, faiss-gpu-cuvs), else torch.
# stage1 and stage2 use all GPUs of the machine; 80 GB each are enough.
# DEBUG=1 trains small shapes for a few steps, to see that it runs.
# Results with date, GPU and versions go to benchmarks/results/gpu-DATE/: report.json and one log per step.
# The trained model and its checkpoints are large and go to runs/gpu-DATE/.
# Exit status: 0 if every step passed, 1 if one failed, 2 for misuse, 3 without a usable GPU.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() { echo "benchmarks/gpu/run.sh: $2" >&2; exit "$1"; }

STEPS=("$@")
[ ${#STEPS[@]} -gt 0 ] || STEPS=(tests throughput index stage1 stage2 train)
for step in "${STEPS[@]}"; do
	case $step in
	tests | throughput | index | stage1 | stage2 | train) ;;
	*) fail 2 "unknown step '$step', expected tests, throughput, index, stage1, stage2 or train" ;;
	esac
done

if [ -z "${PYTHON:-}" ]; then
	[ -x .venv/bin/python ] && PYTHON=.venv/bin/python || PYTHON=python3
fi
command -v "$PYTHON" >/dev/null || fail 2 "no interpreter '$PYTHON': run make install, or set PYTHON"
"$PYTHON" - <<'EOF' || exit 3
import sys
try:
    import torch
except ImportError as error:
    sys.exit(f"benchmarks/gpu/run.sh: torch cannot be imported ({error}): run make install, or set PYTHON")
if not torch.cuda.is_available():
    built = torch.version.cuda or "no CUDA"
    sys.exit(f"benchmarks/gpu/run.sh: no usable GPU: torch {torch.__version__} was built with {built} and sees "
             "0 devices. Run this on a machine with an NVIDIA GPU and a CUDA build of torch")
EOF

NAME=gpu-$(date -u +%Y%m%d-%H%M%S)
OUT=benchmarks/results/$NAME
mkdir -p "$OUT"
status=0
for step in "${STEPS[@]}"; do
	case $step in
	tests) command=("$PYTHON" -m pytest -m gpu --slow -q) ;;
	throughput) command=("$PYTHON" -m benchmarks.gpu.throughput --json "$OUT/throughput.json") ;;
	index) command=("$PYTHON" -m benchmarks.gpu.index_search --json "$OUT/index.json") ;;
	stage1 | stage2)
		command=("$PYTHON" -m torch.distributed.run --nproc-per-node gpu -m benchmarks.gpu.training "$step" --json "$OUT/$step.json")
		[ -z "${DEBUG:-}" ] || command+=(--tiny)
		;;
	train)
		command=("$PYTHON" -m llm2clip.train.cli nano --out "runs/$NAME" --cache "${CACHE:-runs/cache}")
		[ -z "${DEBUG:-}" ] || command+=(--debug)
		;;
	esac
	echo "== $step: ${command[*]}"
	began=$(date +%s)
	"${command[@]}" 2>&1 | tee "$OUT/$step.log"
	code=${PIPESTATUS[0]}
	# pytest says 5 where nothing is marked gpu: nothing was tested, which is no success.
	[ "$code" -eq 0 ] || status=1
	printf '%s\t%s\t%s\n' "$step" "$code" "$(($(date +%s) - began))" >>"$OUT/steps.tsv"
done

for file in run.json history.jsonl; do
	[ ! -f "runs/$NAME/$file" ] || cp "runs/$NAME/$file" "$OUT/nano-$file"
done
"$PYTHON" -m benchmarks.gpu.summary "$OUT" || status=1
exit $status

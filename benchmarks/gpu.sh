#!/usr/bin/env bash
# Everything that needs a GPU: tests, step times, and comparisons. Each has a time limit; what fails doesn't stop the rest.
#
#   bash benchmarks/gpu.sh FOLDER [SCALE [key=value …]]
#
# SCALE is that of the comparison from scratch, in (0, 1] (0.1); the rest is laid over the files of all comparisons. The
# exit code is the number of what failed. What is finished in FOLDER is not measured again, so that the same command goes
# on after an interruption.
set -u
cd "$(dirname "$0")/.."

if [ $# -lt 1 ]; then
    echo 'usage: bash benchmarks/gpu.sh FOLDER [SCALE [key=value …]]' >&2
    exit 2
fi
out=$1
scale=${2:-0.1}
shift $(($# < 2 ? $# : 2))
python=${PYTHON:-python}
failed=0
mkdir -p "$out" || exit 2

# run NAME LIMIT COMMAND …: with the output in FOLDER/NAME.log
run() {
    local name=$1 limit=$2
    shift 2
    echo "== $name (at most $limit): $*"
    timeout --kill-after=30s "$limit" "$@" > "$out/$name.log" 2>&1
    local code=$?
    tail -n 12 "$out/$name.log"
    if [ $code -ne 0 ]; then
        echo "== $name failed with exit code $code; see $out/$name.log"
        failed=$((failed + 1))
    fi
}

# step NAME LIMIT ARGUMENT …
step() {
    local name=$1 limit=$2
    shift 2
    if [ -e "$out/$name/step_time.json" ]; then
        echo "== $name is finished already"
    else
        run "$name" "$limit" "$python" benchmarks/step_time.py --device gpu --out "$out/$name" "$@"
    fi
}

run tests 20m "$python" -m pytest -m gpu --timeout 600

large=(--precision amp_bf16 --channels-last)
step step_resnet56 10m --model resnet56 --batch-size 1024 "${large[@]}"
step step_resnet50 20m --model resnet50 --batch-size 256 --image-size 224 --num-classes 1000 "${large[@]}"
step step_densenet_bc 10m --model densenet_bc --batch-size 256 "${large[@]}"
step step_wrn 10m --model wrn --batch-size 256 "${large[@]}"
step step_vit_small 10m --model vit_small --batch-size 256 --optimizer adamw --precision amp_bf16
step step_resnet56_compiled 20m --model resnet56 --batch-size 1024 "${large[@]}" --stages 5 \
    --compile --eager "$out/step_resnet56"

run compare_resnet56_cifar10 90m "$python" benchmarks/compare.py yamls/resnet56_cifar10 --seeds 3 --scale "$scale" \
    --out "$out/resnet56_cifar10" "$@"

for family in finetune_resnet20_cifar100 finetune_resnet56_cifar100; do
    run "compare_$family" 60m "$python" benchmarks/compare.py "yamls/$family" --seeds 5 --out "$out/$family" "$@"
done

echo "$failed of the above failed"
exit $failed

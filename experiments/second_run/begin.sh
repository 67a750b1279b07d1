#!/bin/bash
# On the GPU machine, once the first pieces are there: unpack, install the wheels, start the run in the background.
#     begin.sh PIECES PLACE [gpu.py's options]
set -eu
pieces=$1 place=$2
shift 2
mkdir -p "$place/work" "$place/out"
# A copy of the code: what is beside this script may be sent anew while the run goes on.
cp -r src experiments benchmarks "$place/"
cat "$pieces"/a* | tar x -C "$place/work"
python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$place/site" "$place"/work/wheels/*.whl
touch "$place/out/arrived-data"
export PYTHONPATH="$place/src:$place/site" INRANKER_CACHE="$place/cache" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
if [ -d "$place/work/out" ]; then # What an earlier machine had finished need not go home again.
    cp -rn "$place/work/out/." "$place/out/"
    for _ in 1 2 3; do
        python3 "$place/experiments/second_run/home.py" send --out "$place/out" --to "$place/void" >/dev/null
    done
fi
setsid nohup python3 "$place/experiments/second_run/gpu.py" all --work "$place/work" --out "$place/out" "$@" \
    >"$place/out/run.txt" 2>&1 </dev/null &
sleep 4
cat "$place/out/run.txt"

#!/usr/bin/env bash
# Everything that ten minutes on a GPU can tell, the most valuable first:
#
#     bash benchmarks/gpu_run.sh OUT_DIR [--backend emulator:sm_90a]
#
# Each step is a process of its own with a limit of its own, and its log is in OUT_DIR at once: a step that fails,
# hangs or crashes costs no other its result. OUT_DIR/results.tgz holds all of them, packed anew after every step. The
# last thing printed is one line a step. With an emulator for a backend the same steps are rehearsed without a GPU.
#
# Needs no installation: PYTHON (python3) with CuPy, NumPy and pytest; what else is there is used. SECONDS_IN_ALL bounds
# the whole (540, five times that in the emulator), and the limits of the steps with it.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  printf 'usage: bash benchmarks/gpu_run.sh OUT_DIR [--backend emulator:ARCH]\n' >&2
  exit 2
}
[ $# -eq 1 ] || { [ $# -eq 3 ] && [ "$2" = --backend ]; } || usage
backend="${3:-cuda}"
mkdir -p "$1" && out="$(cd "$1" && pwd)" || exit 2
python="${PYTHON:-python3}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export CUPY_FLASH_COMPILE=lazy # compiling has a step of its own

case "$backend" in
  cuda) in_all=${SECONDS_IN_ALL:-540} arch=() ;;
  *) in_all=${SECONDS_IN_ALL:-2700} arch=(--arch "${backend#emulator:}") ;;
esac
steps="$out/steps.tsv"
: >"$steps"

# step NAME LIMIT COMMAND...: run within LIMIT of 540 seconds, then note what became of it.
step() {
  local name="$1" limit=$(($2 * in_all / 540)) log="$out/$1.log" began=$SECONDS left=$((in_all - SECONDS)) status said
  shift 2
  [ "$limit" -ge 1 ] || limit=1
  [ "$limit" -le "$left" ] || limit=$left
  if [ "$limit" -lt 1 ]; then
    status="no time left"
    : >"$log"
  else
    timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1 </dev/null
    status=$(outcome $? "$limit" $((SECONDS - began)))
  fi
  said=$(grep -a '[^[:space:]]' "$log" | tail -n 1 | tr '\t\r' '  ' | cut -c 1-160)
  printf '%s\t%s\t%d\t%s\n' "$name" "$status" $((SECONDS - began)) "$said" | tee -a "$steps"
  (cd "$out" && ls | grep -vx results.tgz | tar -czf .packing --files-from=- && mv .packing results.tgz)
}

# outcome STATUS LIMIT TOOK: an exit status in words. timeout gives 124, or 137 where it had to kill.
outcome() {
  case "$1" in
    0) echo ok ;;
    124) echo "stopped after $2 s" ;;
    127) echo "not installed" ;;
    *)
      if [ "$1" -eq 137 ] && [ "$3" -ge "$2" ]; then
        echo "killed after $2 s"
      elif [ "$1" -gt 128 ]; then
        echo "crashed, signal $(($1 - 128))"
      else
        echo failed
      fi
      ;;
  esac
}

versions() {
  nvidia-smi
  nvcc --version
  "$python" --version
  "$python" -m pip list 2>/dev/null | grep -iE '^(cupy|numpy|torch|triton|jax|nvidia|cuda|ml.dtypes|flash|hypothesis|pytest)'
  lscpu | grep -E '^(Model name|CPU\(s\))'
  git log -1 --format='commit %H %cs'
  "$python" -m cupy_flash info
}
export -f versions
export python

workload=("$python" benchmarks/workload.py --backend "$backend")
profiled=4096

step versions 40 bash -c versions
step compile 150 "$python" -m cupy_flash compile "${arch[@]}" --for check bench
step smoke 60 "$python" -m cupy_flash check --backend "$backend" --only smoke
step golden 90 "$python" -m cupy_flash check --backend "$backend" --only primitive --golden "$out/primitives.npz"
step check 120 "$python" -m cupy_flash check --backend "$backend" --skip smoke --skip primitive
step bench 180 "$python" -m cupy_flash bench --backend "$backend" --quick --minutes 2.4 --out "$out/bench.csv"
step pytest 120 "$python" -m pytest -m gpu -n 8 -q -p no:cacheprovider
for tool in memcheck racecheck synccheck; do
  step "$tool" 40 compute-sanitizer --tool "$tool" --error-exitcode 1 "${workload[@]}" --seqlen 300 --causal
done
step ncu 90 ncu --clock-control none --set full --page raw --csv --kernel-name regex:attention \
  --log-file "$out/ncu.csv" "${workload[@]}" --seqlen "$profiled" --heads 16 --head-dim 128
[ ! -s "$out/ncu.csv" ] || step ncu_table 10 "$python" benchmarks/ncu_table.py "$out/ncu.csv"
learned=(--batch 2 --bias --sinks --wrt q k v bias sinks) # their kernels are compiled by the first of these
for tool in memcheck racecheck synccheck; do
  step "$tool-learned" 40 compute-sanitizer --tool "$tool" --error-exitcode 1 "${workload[@]}" --seqlen 300 "${learned[@]}"
done

for log in "$out/bench.log" "$out/ncu_table.log"; do
  [ ! -f "$log" ] || { grep '^|' "$log" && echo; }
done
printf '%-17s %-18s %5s  %s\n' step outcome s "last line"
while IFS=$'\t' read -r name status seconds said; do
  printf '%-17s %-18s %5d  %s\n' "$name" "$status" "$seconds" "${said:0:110}"
done <"$steps"
printf '%d s in all, %s bytes in %s\n' "$SECONDS" "$(wc -c <"$out/results.tgz")" "$out/results.tgz"
! cut -f 2 "$steps" | grep -vqxE 'ok|not installed'

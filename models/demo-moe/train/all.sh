#!/bin/sh
# usage: all.sh CORPORA WORK [BASE]
# From the corpora to a model folder WORK/model with its card. BASE, an earlier model folder, is what the model grows from;
# without it training begins with random weights. Environment: PYTHON, MINUTES (stable rate), DECAY_MINUTES, ENTRIES,
# TRAIN_OPTIONS, DECAY_OPTIONS (further options of train.py), TWIN_TASK, TWIN_OPTIONS.
set -eu
case $#:${1-} in
  [23]:[!-]*) ;;
  *) sed -n '2,5s/^# //p' "$0"; exit 2 ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
corpora=$1 work=$2 base=${3:-}
python=${PYTHON:-python3}
step() { name=$1; shift; echo "== $name"; "$python" "$here/$name.py" "$@"; }

mkdir -p "$work"
step prepare "$corpora" "$work"
step tokenizer "$work" "${ENTRIES:-6144}" ${base:+--base "$base"}
step encode "$work"
[ -z "$base" ] || step grow "$base" "$work" --check
# shellcheck disable=SC2086
step train "$work" --minutes "${MINUTES:-95}" ${TRAIN_OPTIONS:-}
# shellcheck disable=SC2086
step train "$work" --decay --minutes "${DECAY_MINUTES:-20}" ${DECAY_OPTIONS:-${TRAIN_OPTIONS:-}}
step export "$work"
step evaluate "$work" ${base:+--before "$base"}
# shellcheck disable=SC2086
step twin tune "$work" "${TWIN_TASK:-maths}" ${TWIN_OPTIONS:-}
step card "$work"

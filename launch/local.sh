#!/usr/bin/env bash
# Several processes of one run on this machine.
#
#   CONFIG=configs/nsd8.py WORKDIR=runs/nsd8 launch/local.sh [--dry_run] \
#       [--restarts=K] [flags of ubrain_jax.main]
#
# CONFIG, WORKDIR       As --config and --workdir of ubrain_jax.main.
# PROCESSES             How many; 2.
# DEVICES_PER_PROCESS   CPU devices of each. Unset: process i has GPU i, or the i-th of
#                       CUDA_VISIBLE_DEVICES.
# LOGS                  Folder of process-<i>.log; $WORKDIR.logs.
# PYTHON                python3.
#
# SIGTERM and Ctrl-C go on to every process once: they save and end with 75. The exit
# code is 0, or that of a process that failed, or 75 or 76: the same command goes on.
# --restarts=K does that up to K times.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

dry_run='' restarts=0 flags=()
for word in "$@"; do
  case $word in
    --help | -h) usage "$0"; exit 0 ;;
    --dry_run) dry_run=1 ;;
    --restarts=*) restarts=${word#*=} ;;
    *) flags+=("$word") ;;
  esac
done
need CONFIG configs/nsd8.py
need_folder WORKDIR runs/nsd8
PROCESSES=${PROCESSES:-2} PYTHON=${PYTHON:-python3} LOGS=${LOGS:-$WORKDIR.logs}
need_number PROCESSES "$PROCESSES" 1
need_number --restarts "$restarts" 0
[[ -z ${DEVICES_PER_PROCESS:-} ]] ||
  need_number DEVICES_PER_PROCESS "$DEVICES_PER_PROCESS" 1
IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-}"
if [[ -z ${DEVICES_PER_PROCESS:-} ]] && ((${#gpus[@]} > 0 && ${#gpus[@]} < PROCESSES)); then
  die "CUDA_VISIBLE_DEVICES is $CUDA_VISIBLE_DEVICES; expected $PROCESSES GPUs, one for each process"
fi

free_port() {
  "$PYTHON" -c 'import socket
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    print(s.getsockname()[1])'
}

# command_of PROCESS PORT: sets `command`.
command_of() {
  command=(env)
  if [[ -n ${DEVICES_PER_PROCESS:-} ]]; then
    local count=--xla_force_host_platform_device_count=$DEVICES_PER_PROCESS
    command+=(JAX_PLATFORMS=cpu "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }$count")
  else
    command+=("CUDA_VISIBLE_DEVICES=${gpus[$1]:-$1}")
  fi
  command+=("$PYTHON" -m ubrain_jax.main "--config=$CONFIG" "--workdir=$WORKDIR"
    "--coordinator=127.0.0.1:$2" "--num_processes=$PROCESSES" "--process_id=$1"
    ${flags[@]+"${flags[@]}"})
}

pids=() asked=0 # how many signals came
stop() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do kill -TERM "$pid" 2>/dev/null || true; done
}
trap 'asked=$((asked + 1))' TERM INT HUP

# Starts all and waits for all; sets `code`.
once() {
  local i port told=0 codes=() left=$PROCESSES
  port=$(free_port)
  mkdir -p -- "$LOGS"
  pids=()
  for ((i = 0; i < PROCESSES; i++)); do
    command_of "$i" "$port"
    # In a group of its own: Ctrl-C reaches it once, from here.
    set -m
    "${command[@]}" >>"$LOGS/process-$i.log" 2>&1 </dev/null &
    set +m
    pids[i]=$!
  done
  while ((left > 0)); do
    sleep 0.2 || true # Ctrl-C ends it, too
    if ((told < asked)); then
      told=$asked
      stop
    fi
    for i in "${!pids[@]}"; do
      if ! kill -0 "${pids[i]}" 2>/dev/null; then
        code=0
        wait "${pids[i]}" || code=$?
        unset "pids[i]"
        codes+=("$code") left=$((left - 1))
        case $code in
          0 | 75 | 76) ;;
          *) # The others would wait for it. They may be about to tell the same.
            echo "process $i ended with $code: $LOGS/process-$i.log" >&2
            if ((left > 0)); then
              sleep 3 || true
              stop
            fi
            ;;
        esac
      fi
    done
  done
  code=$(outcome "${codes[@]}")
}

if [[ -n $dry_run ]]; then
  for ((i = 0; i < PROCESSES; i++)); do
    command_of "$i" PORT
    quoted "${command[@]}"
  done
  exit 0
fi
while :; do
  once
  case $code in
    75 | 76) ((restarts > 0 && asked == 0)) || break ;;
    *) break ;;
  esac
  restarts=$((restarts - 1))
  echo "ended with $code; starting again, $restarts more times at most" >&2
done
exit "$code"

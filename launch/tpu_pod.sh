#!/usr/bin/env bash
# One run on the hosts of a Cloud TPU pod slice; JAX finds them by itself.
#
#   launch/tpu_pod.sh create    ask for the slice and wait until it is there
#   launch/tpu_pod.sh install   mount the disk, get the code, on every host
#   launch/tpu_pod.sh run [flags of ubrain_jax.main]
#   launch/tpu_pod.sh resume [the same flags]
#                               all three, again and again, until the run is done;
#                               then delete the slice, which costs as long as it is
#   launch/tpu_pod.sh fetch     the results, without checkpoints, to OUT
#   launch/tpu_pod.sh delete    the slice; the disk stays
#
# With --dry_run each prints its commands. Variables, with what they are when unset:
#
# PROJECT, ZONE    Of Google Cloud.
# NAME             ubrain; of the slice.
# TYPE, VERSION    Of the slice, as v5litepod-32 and v2-alpha-tpuv5-lite.
# SPOT             1 asks for a slice that can be taken away, for less money.
# REPO, REF        Where git gets the code; main. A tag or commit keeps it the same.
# NFS, MOUNT       A Filestore share in the same network, as 10.0.0.2:/share, mounted
#                  at /mnt/ubrain on every host: stores, backbone and workdir.
# CONFIG, WORKDIR  As --config and --workdir; WORKDIR below MOUNT.
# OUT              Folder here for `fetch`.
# RESTARTS         100; how often `resume` starts again.
# WAIT             30; seconds between looks at the slice.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

read_words "$0" "$@"
NAME=${NAME:-ubrain} MOUNT=${MOUNT:-/mnt/ubrain} REF=${REF:-main}
RESTARTS=${RESTARTS:-100} WAIT=${WAIT:-30}
need PROJECT my-project
need ZONE us-central1-a
need_number RESTARTS "$RESTARTS" 0
need_number WAIT "$WAIT" 0
place=("--zone=$ZONE" "--project=$PROJECT")

need_for() {
  case $1 in
    create) need TYPE v5litepod-32; need VERSION v2-alpha-tpuv5-lite ;;
    install)
      need REPO https://github.com/me/ubrain_jax
      need NFS 10.0.0.2:/share
      ;;
    run)
      need CONFIG configs/nsd8.py
      need_folder WORKDIR "$MOUNT/runs/nsd8"
      case $WORKDIR in
        "$MOUNT"/*) ;;
        *) die "WORKDIR is $WORKDIR; expected a folder below MOUNT ($MOUNT)" ;;
      esac
      ;;
    resume) need_for create; need_for install; need_for run ;;
    fetch) need_for run; need OUT results/nsd8 ;;
    delete) ;;
    *) die "expected create, install, run, resume, fetch or delete; got '$1'. --help tells more" ;;
  esac
}

# on WORKERS COMMAND: over ssh.
on() {
  run gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" "--worker=$1" "--command=$2"
}

# The state of the slice's machines: GONE where there are none, UNKNOWN where gcloud
# cannot tell.
state() {
  local now
  if now=$(gcloud compute tpus tpu-vm describe "$NAME" "${place[@]}" \
    '--format=value(state)' 2>&1); then
    case $now in
      PREEMPTED | TERMINATED | STOPPED) echo GONE ;;
      *) echo "$now" ;;
    esac
  elif [[ $now == *NOT_FOUND* || $now == *"not found"* ]]; then
    echo GONE
  else
    echo UNKNOWN
  fi
}

create() {
  local now
  run gcloud compute tpus queued-resources create "$NAME" "--node-id=$NAME" \
    "${place[@]}" "--accelerator-type=$TYPE" "--runtime-version=$VERSION" ${SPOT:+--spot} ||
    return
  [[ -z $dry_run ]] || return 0
  while [[ $(state) != READY ]]; do
    now=$(gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" \
      '--format=value(state.state)') || now=UNKNOWN
    case $now in
      FAILED | SUSPEND*)
        echo "error: $NAME is $now; launch/tpu_pod.sh delete, then create" >&2
        return 69
        ;;
    esac
    echo "$NAME: $now" >&2
    sleep "$WAIT"
  done
}

delete() {
  run gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --force --quiet
}

# The images have Python 3.10, which is too old: uv brings another.
install() {
  local nfs mount url ref
  nfs=$(quoted "$NFS") mount=$(quoted "$MOUNT") url=$(quoted "$REPO") ref=$(quoted "$REF")
  on all "set -e
sudo apt-get -qq -o DPkg::Lock::Timeout=300 update
sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y nfs-common git
sudo mkdir -p $mount
mountpoint -q $mount || sudo mount -t nfs -o hard $nfs $mount
[ -d ubrain_jax ] || git clone -q $url ubrain_jax
git -C ubrain_jax fetch -q origin $ref
git -C ubrain_jax checkout -q --detach FETCH_HEAD
python3 -m pip install --quiet --user uv
[ -d ubrain ] || .local/bin/uv venv --quiet --python 3.12 ubrain
.local/bin/uv pip install --quiet --python ubrain/bin/python -e 'ubrain_jax[tpu]'"
}

# gcloud returns the code of one host and tells those of all.
run_all() {
  local told code=0 codes command
  command=$(quoted env "HF_HUB_CACHE=$MOUNT/huggingface" \
    "JAX_COMPILATION_CACHE_DIR=$MOUNT/compiled" ../ubrain/bin/python -m \
    ubrain_jax.main "--config=$CONFIG" "--workdir=$WORKDIR" \
    ${flags[@]+"${flags[@]}"})
  command="cd ubrain_jax && exec $command"
  if [[ -n $dry_run ]]; then
    on all "$command"
    return
  fi
  told=$(mktemp)
  telling "$told" on all "$command" || code=$?
  mapfile -t codes < <(
    sed -nE 's/^##### Command execution on worker .* exit status ([0-9]+)\..*/\1/p' "$told"
  )
  rm -f -- "$told"
  return "$(outcome ${codes[@]+"${codes[@]}"} "$code")"
}

resume() {
  local code left=$RESTARTS installed=''
  if [[ -n $dry_run ]]; then
    create && install && run_all
    return
  fi
  while :; do
    case $(state) in
      READY) ;;
      GONE)
        delete || true # what is left of it; there may be nothing
        create || return
        installed=''
        ;;
      *)
        sleep "$WAIT"
        continue
        ;;
    esac
    [[ -n $installed ]] || install || return
    installed=1 code=0
    run_all || code=$?
    ((code != 0)) || return 0
    sleep "$WAIT"
    # Of a slice that was taken away, the code tells nothing.
    if [[ $code != 7[56] && $(state) != GONE ]] || ((left == 0)); then
      return "$code"
    fi
    left=$((left - 1))
    echo "ended with $code; starting again, $left more times at most" >&2
  done
}

fetch() {
  local folder
  folder="tar -C $(quoted "$WORKDIR") --exclude='./checkpoints*' --exclude='./best*' -cf - ."
  if [[ -n $dry_run ]]; then
    echo "$(on 0 "$folder") | $(quoted tar -C "$OUT" -xf -)"
    return
  fi
  mkdir -p -- "$OUT"
  on 0 "$folder" | tar -C "$OUT" -xf -
}

need_for "$action"
case $action in
  run) run_all ;;
  *) "$action" ;;
esac

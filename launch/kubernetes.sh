#!/usr/bin/env bash
# One run on the GPUs of several pods of a Kubernetes cluster.
#
#   launch/kubernetes.sh disk      the disk of the runs, once
#   launch/kubernetes.sh start [flags of ubrain_jax.main]
#   launch/kubernetes.sh logs      of pod 0, which prints for all
#   launch/kubernetes.sh delete    the job; never the disk. The pods save first.
#
# With --dry_run each prints its command; disk and start print before it the YAML that
# the command reads. Variables, with what they are when unset:
#
# CONFIG, WORKDIR  As --config and --workdir, in the pods: WORKDIR below DISK.
# IMAGE            Container image in which python3 has ubrain_jax[gpu] and CONFIG.
# NAME             ubrain; of the job and its service.
# PODS, GPUS       2 pods of 8 GPUs each; one pod is one process.
# CLAIM, DISK      ubrain, mounted at /ubrain: a volume that many pods may write.
# STORAGE_CLASS    Of the disk, with ReadWriteMany; only for `disk`.
# SIZE             1Ti; of the disk.
# RESTARTS         100; how often all pods may end with 75 or 76.
# PORT             8476; on which pod 0 listens.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

read_words "$0" "$@"
NAME=${NAME:-ubrain} PODS=${PODS:-2} GPUS=${GPUS:-8} CLAIM=${CLAIM:-ubrain}
DISK=${DISK:-/ubrain} SIZE=${SIZE:-1Ti} RESTARTS=${RESTARTS:-100} PORT=${PORT:-8476}
need_number PODS "$PODS" 1
need_number GPUS "$GPUS" 1
need_number RESTARTS "$RESTARTS" 0
need_number PORT "$PORT" 1
# The job adds -0 to the name of its first pod, which is a name of DNS.
for name in NAME CLAIM; do
  [[ ${!name} =~ ^[a-z]([-a-z0-9]{0,50}[a-z0-9])?$ ]] ||
    die "$name is ${!name}; expected small letters, digits and -, 52 at most"
done

# yaml_string TEXT: as one quoted string, in which Kubernetes expands nothing.
yaml_string() {
  local text=${1//\\/\\\\} variable="\$("
  text=${text//\"/\\\"}
  printf '"%s"' "${text//"$variable"/"\$$variable"}"
}

# Puts the values of variables into the ${...} of a template.
filled() {
  local text name
  text=$(<"$here/$1")
  shift
  for name in "$@"; do
    text=${text//"\${$name}"/"${!name}"}
  done
  printf '%s\n' "$text"
}

apply() {
  if [[ -n $dry_run ]]; then printf '%s\n' "$1"; fi
  run kubectl apply -f - <<<"$1"
}

case $action in
  disk)
    need STORAGE_CLASS standard-rwx
    [[ $SIZE =~ ^[0-9]+(Gi|Ti|G|T)$ ]] || die "SIZE is $SIZE; expected such as 1Ti"
    [[ $STORAGE_CLASS =~ ^[-a-z0-9.]+$ ]] || die "STORAGE_CLASS is $STORAGE_CLASS"
    apply "$(filled kubernetes_disk.yaml CLAIM STORAGE_CLASS SIZE)"
    ;;
  start)
    need CONFIG /ubrain/configs/nsd8.py
    need_folder WORKDIR "$DISK/runs/nsd8"
    need IMAGE registry.example.org/ubrain_jax:0.1
    case $WORKDIR in
      "$DISK"/*) ;;
      *) die "WORKDIR is $WORKDIR; expected a folder below DISK ($DISK)" ;;
    esac
    [[ $DISK =~ ^/[-A-Za-z0-9/._]+$ ]] || die "DISK is $DISK; expected a plain path"
    [[ $IMAGE =~ ^[-A-Za-z0-9/._:@]+$ ]] || die "IMAGE is $IMAGE"
    # shellcheck disable=SC2034 # `filled` reads it
    BACKOFF=$((RESTARTS * PODS)) ARGS=''
    for word in "--config=$CONFIG" "--workdir=$WORKDIR" ${flags[@]+"${flags[@]}"}; do
      [[ $word != *$'\n'* ]] || die "a line break in $word"
      ARGS+="${ARGS:+$'\n            '}- $(yaml_string "$word")"
    done
    apply "$(filled kubernetes.yaml NAME PODS GPUS CLAIM DISK PORT IMAGE RESTARTS \
      BACKOFF ARGS)"
    ;;
  logs) run kubectl logs --follow --selector "job-name=$NAME,batch.kubernetes.io/job-completion-index=0" ;;
  delete) run kubectl delete "job/$NAME" "service/$NAME" ;;
  *) die "expected disk, start, logs or delete; got '${action}'. --help tells more" ;;
esac

# What the launchers share: each sources this file. Nothing here starts a run.
# shellcheck shell=bash

die() {
  printf 'error: %s\n' "$*" >&2
  exit 64
}

# need NAME EXAMPLE: refuses to go on without a variable.
need() {
  [[ -n ${!1:-} ]] || die "$1 is not set; for example: export $1='$2'"
}

# Folders of a run are read, written and locked as files: a bucket is none.
need_folder() {
  need "$1" "$2"
  case ${!1} in
    *://*) die "$1 is ${!1}; expected a folder that is mounted on every machine" ;;
  esac
}

need_number() {
  if [[ ! $2 =~ ^[0-9]{1,9}$ ]] || (($2 < $3)); then
    die "$1 is $2; expected a whole number from $3"
  fi
}

# The comment at the top of a launcher, as its help.
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$1" | grep -v '^SBATCH'
}

# read_words SCRIPT WORD...: sets dry_run, action (the word without a dash) and flags.
read_words() {
  local script=$1 word
  shift
  dry_run='' action='' flags=()
  for word in "$@"; do
    case $word in
      --help | -h) usage "$script"; exit 0 ;;
      --dry_run) dry_run=1 ;;
      -*) flags+=("$word") ;;
      *)
        [[ -z $action ]] || die "two actions: $action and $word"
        action=$word
        ;;
    esac
  done
}

# The command in a form that can be pasted into a shell.
quoted() {
  local word line=''
  for word in "$@"; do
    if [[ ! $word =~ ^[-A-Za-z0-9_./:=@%+,]+$ ]]; then
      word="'${word//"'"/"'\\''"}'"
    fi
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# Does it, or with --dry_run prints it.
run() {
  if [[ -n ${dry_run:-} ]]; then quoted "$@"; else "$@"; fi
}

# outcome CODE...: one exit code for a run whose processes ended with these. A fault
# of one comes before 75 and 76, with which the others then miss it; a kill comes
# after them, since the run can go on without asking why.
outcome() {
  local code found=0
  for code in "$@"; do
    case $code in
      0) ;;
      75 | 76) ((found > 0 && found < 128)) || found=$code ;;
      134 | 135 | 137 | 139 | 143 | 255) ((found > 0)) || found=$code ;;
      *)
        echo "$code"
        return
        ;;
    esac
  done
  echo "$found"
}

# telling FILE COMMAND...: its exit code; standard error also goes to FILE.
telling() {
  local file=$1
  shift
  { "$@" 2>&1 >&3 3>&- | (
    trap '' TERM INT # it ends with the command
    exec tee -- "$file" >&2
  ) 3>&-; } 3>&1
}

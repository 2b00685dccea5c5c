#!/usr/bin/env bash
# A real Slurm of one node for tests: munged, slurmctld and slurmd as ordinary processes of the
# caller, without systemd, cgroups or accounting, listening on the loopback interface alone.
#
#   apt-get install -y --no-install-recommends slurm-wlm munge     (once, as root)
#   scripts/slurm_up.sh start|stop|status
#   eval "$(scripts/slurm_up.sh env)"       SLURM_CONF, for sbatch, squeue and the others
#
# SLURM_TEST_DIR is where everything lies, SLURM_TEST_PORT the first of two ports, SLURM_TEST_CPUS
# what the node claims to have. A cluster of the machine itself is not touched.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C

dir="${SLURM_TEST_DIR:-${TMPDIR:-/tmp}/hada-slurm}"
port="${SLURM_TEST_PORT:-26817}"
cpus="${SLURM_TEST_CPUS:-2}"
host="$(hostname -s)"
me="$(id -un)"
export SLURM_CONF="$dir/slurm.conf"

fail() {
  echo "slurm_up: $*" >&2
  for log in "$dir"/*.log; do
    [ -s "$log" ] && { echo "--- $log" >&2; tail -n 8 "$log" >&2; }
  done
  exit 1
}

# A process number is used again after a while; with the time of its start it names one process.
born() { awk '{ sub(/.*\) /, ""); if ($1 != "Z") print $20 }' "/proc/$1/stat" 2>/dev/null || true; }

runs() {
  local pid start
  read -r pid start 2>/dev/null <"$dir/$1.pid" || return 1
  [ -n "$start" ] && [ "$(born "$pid")" = "$start" ]
}

launch() {
  local name="$1"
  shift
  setsid "$@" </dev/null >>"$dir/$name.log" 2>&1 &
  local pid=$!
  sleep 0.2
  echo "$pid $(born "$pid")" >"$dir/$name.pid"
  runs "$name" || fail "$name ended at once"
}

until_ready() {
  local what="$1"
  shift
  for _ in $(seq 150); do
    "$@" >/dev/null 2>&1 && return 0
    sleep 0.2
  done
  fail "$what is not ready after 30 s"
}

munge_answers() { munge -S "$dir/munge.socket" -n | unmunge -S "$dir/munge.socket"; }
controller_answers() { scontrol ping | grep -q 'is UP'; }
node_is_usable() { sinfo -h -N -o %T | grep -Eqx 'idle|mixed|allocated|completing'; }

configure() {
  local memory
  memory="$(awk '/MemTotal/ { print int($2 / 1024 * 0.9) }' /proc/meminfo)"
  cat >"$SLURM_CONF" <<CONF
ClusterName=hadatest
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its credential has expired: two minutes where nothing is said.
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.own
SlurmdPidFile=$dir/slurmd.own
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/finished.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=256
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
JobRequeue=1
KillWait=5
MinJobAge=600
ReturnToService=2
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
NodeName=$host NodeHostname=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=1:00:00 DefaultTime=0:10:00 State=UP
CONF
  # From 24.05 on Slurm looks for cgroups unless told not to.
  case "$(slurmd -V)" in
    *" 2[01]."* | *" 22."* | *" 23."*) rm -f "$dir/cgroup.conf" ;;
    *) echo 'CgroupPlugin=disabled' >"$dir/cgroup.conf" ;;
  esac
}

start() {
  for tool in munged slurmctld slurmd sbatch; do
    command -v "$tool" >/dev/null \
      || fail "$tool is missing: apt-get install -y --no-install-recommends slurm-wlm munge"
  done
  if runs munged && runs slurmctld && runs slurmd && controller_answers; then return 0; fi
  stop
  getent hosts "$host" >/dev/null || fail "the host name $host does not resolve"
  rm -rf "${dir:?}/state" "$dir/spool" "$dir"/*.log "$dir"/munge.socket*
  mkdir -p "$dir/state" "$dir/spool"
  chmod 755 "$dir"
  configure
  (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
  launch munged munged -F --key-file="$dir/munge.key" --socket="$dir/munge.socket" \
    --pid-file="$dir/munged.own" --seed-file="$dir/munge.seed" --log-file="$dir/munged.own.log"
  until_ready munged munge_answers
  launch slurmctld slurmctld -D -f "$SLURM_CONF"
  until_ready slurmctld controller_answers
  launch slurmd slurmd -D -f "$SLURM_CONF"
  until_ready "node $host" node_is_usable
}

end() {
  local pid start
  if runs "$1"; then
    read -r pid start <"$dir/$1.pid"
    kill -TERM "$pid" 2>/dev/null || true
    for _ in $(seq 100); do
      runs "$1" || break
      sleep 0.1
    done
    if runs "$1"; then kill -KILL "$pid" || true; fi
  fi
  rm -f "$dir/$1.pid"
}

stop() {
  if runs slurmctld && runs munged; then
    timeout 10 scancel -u "$me" 2>/dev/null || true
    for _ in $(seq 60); do
      [ -z "$(timeout 10 squeue -h 2>/dev/null)" ] && break
      sleep 0.2
    done
  fi
  for name in slurmd slurmctld munged; do end "$name"; done
}

mkdir -p "$dir"
exec 9>"$dir.lock"
flock -w 60 9 || fail "another slurm_up.sh is at work on $dir"
case "${1:-}" in
  # The daemons must not inherit the lock.
  start) start 9>&- ;;
  stop) stop ;;
  status) runs munged && runs slurmctld && runs slurmd && controller_answers && node_is_usable ;;
  env) echo "export SLURM_CONF=$SLURM_CONF" ;;
  *) fail "usage: $0 start|stop|status|env" ;;
esac

#!/usr/bin/env bash
# A Slurm cluster of one node for tests, with accounting, on Debian as root, without systemd and cgroups.
#     export SLURM_CONF=$(.ci/slurm.sh start)    installs it where it is missing, starts it, prints its configuration
#     .ci/slurm.sh stop
# Everything it writes is in $SLURM_STATE.
set -euo pipefail

state=${SLURM_STATE:-/tmp/slurm-one-node}
export SLURM_CONF=$state/slurm.conf

is_running() { [[ -e $state/$1.pid ]] && kill -0 "$(< "$state/$1.pid")" 2> /dev/null; }

# Until the command succeeds; fails with the logs after a minute.
wait_for() {
    for _ in {1..120}; do
        if "$@" > /dev/null 2>&1; then return; fi
        sleep 0.5
    done
    echo "Slurm did not start: $* fails." >&2
    tail -n 20 "$state"/*.log >&2
    return 1
}

stop() {
    local name pid
    for name in slurmd slurmctld slurmdbd mariadb munge; do
        if is_running "$name"; then
            pid=$(< "$state/$name.pid")
            kill "$pid"
            timeout 30 tail --pid="$pid" --follow /dev/null || kill -KILL "$pid"
        fi
    done
    rm -rf "$state"
}

install() {
    export DEBIAN_FRONTEND=noninteractive
    # Without starting their services.
    local policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' > $policy
        chmod +x $policy
        trap "rm -f $policy" RETURN
    fi
    apt-get update -qq
    apt-get install -qq --yes --no-install-recommends slurm-wlm slurmdbd mariadb-server munge > /dev/null
}

configure() {
    mkdir -p "$state"/{spool,saved}
    dd if=/dev/urandom of="$state/munge.key" bs=128 count=1 status=none
    chmod 600 "$state/munge.key"
    cat > "$state/slurmdbd.conf" << END
AuthType=auth/munge
AuthInfo=socket=$state/munge.socket
DbdHost=localhost
DbdPort=16819
SlurmUser=root
LogFile=$state/slurmdbd.log
PidFile=$state/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=16306
StorageUser=root
StorageLoc=slurm
END
    chmod 600 "$state/slurmdbd.conf"
    cat > "$SLURM_CONF" << END
ClusterName=one
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket=$state/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort=16819
AccountingStoragePass=$state/munge.socket
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2
KillWait=10
ReturnToService=2
MpiDefault=none
StateSaveLocation=$state/saved
SlurmdSpoolDir=$state/spool
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
SlurmdParameters=config_overrides
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
}

start() {
    for program in slurmctld slurmd slurmdbd mariadbd munged; do
        if ! command -v $program > /dev/null; then install; break; fi
    done
    if ! is_running slurmctld; then stop; configure; fi
    is_running munge || munged --force --key-file="$state/munge.key" --socket="$state/munge.socket" \
        --pid-file="$state/munge.pid" --log-file="$state/munge.log" --seed-file="$state/munge.seed"
    if ! is_running mariadb; then
        mariadb-install-db --no-defaults --user=root --datadir="$state/mysql" \
            --auth-root-authentication-method=normal > "$state/mariadb.log"
        setsid mariadbd --no-defaults --user=root --datadir="$state/mysql" --bind-address=127.0.0.1 --port=16306 \
            --socket="$state/mariadb.socket" --pid-file="$state/mariadb.pid" &> "$state/mariadb.log" &
        wait_for mariadb-admin --no-defaults --socket="$state/mariadb.socket" ping
    fi
    is_running slurmdbd || slurmdbd
    wait_for sacctmgr --noheader list cluster
    sacctmgr --immediate add cluster one || true
    is_running slurmctld || slurmctld
    is_running slurmd || slurmd
    wait_for srun --immediate=5 true
}

case ${1:-} in
    start) start >&2; echo "$SLURM_CONF" ;;
    stop) stop ;;
    *) echo "usage: .ci/slurm.sh start|stop" >&2; exit 2 ;;
esac

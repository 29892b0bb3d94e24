"""What launch files make of exit codes and arguments: stand-ins take the schedulers' place."""

import os
import pathlib
import re
import shlex
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
ARGUMENTS = ['train', "--config.model.name=it's 2 words", '--config.data.size=(64,96)', '$HOME']


@pytest.fixture
def programs(tmp_path):
    """`programs(name=body)` makes commands of these names; the environment that has them."""

    def make(**bodies):
        for name, body in bodies.items():
            path = tmp_path / name
            path.write_text(f'#!/usr/bin/env bash\n{body}\n')
            path.chmod(0o755)
        return {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'LOG': f'{tmp_path}/log'}

    return make


def run(path, *words, environment, **more):
    command = ['bash', ROOT / 'launch' / path, *words]
    environment = {**environment, **more}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ('code', 'restarts', 'requeued'),
    [
        *[(143, '', True), (75, '', True), (134, '', True), (143, '19', True), (143, '20', False)],
        *[(0, '', False), (2, '', False), (137, '', False)],
    ],
)
def test_slurm_requeues_what_was_stopped_and_no_mistake(programs, code, restarts, requeued):
    environment = programs(srun=f'exit {code}', scontrol='echo "$@" >>"$LOG"')
    more = {'SLURM_JOB_ID': '8', **({'SLURM_RESTART_COUNT': restarts} if restarts else {})}
    done = run('slurm.sbatch', 'train', environment=environment, **more)
    log = pathlib.Path(environment['LOG'])
    assert done.returncode == code, done.stderr
    assert (log.read_text() if log.exists() else '') == ('requeue 8\n' if requeued else '')


def test_slurm_signals_the_tasks_and_not_the_script():
    text = (ROOT / 'launch/slurm.sbatch').read_text(encoding='utf-8')
    flags = dict(re.findall(r'^#SBATCH --([\w-]+)=?(.*)$', text, re.M))
    assert flags['signal'] == 'TERM@120' and flags['open-mode'] == 'append' and 'requeue' in flags
    assert flags['ntasks-per-node'] == flags['gpus-per-node'], 'one task a GPU'


def test_xpk_hands_the_arguments_over_whole(programs):
    environment = programs(
        xpk='for word; do case "$word" in --command=*) bash -c "${word#*=}" ;; esac; done',
        dsrl='printf "%s\\n" "$@"',
    )
    done = run('xpk.sh', *ARGUMENTS, environment=environment, CLUSTER='c', IMAGE='i')
    assert done.stdout.splitlines() == ARGUMENTS, done.stderr
    assert 'CLUSTER' in run('xpk.sh', 'train', environment=environment).stderr


def test_hosts_of_a_tpu_slice_know_who_they_are(programs, tmp_path):
    """The slice is there already; its second host, whose metadata server answers as below."""
    (tmp_path / 'dsrl_venv/bin').mkdir(parents=True)
    (tmp_path / 'dsrl_venv/bin/activate').touch()
    environment = programs(
        gcloud=f"""echo "$@" >>"$LOG"
cd {shlex.quote(str(tmp_path))}
case "$*" in
*describe*) echo 'state=ACTIVE' ;;
*JAX_PROCESS_ID*) for word; do case "$word" in --command=*) bash -c "${{word#*=}}" ;; esac; done ;;
esac""",
        curl="""case "$*" in
*worker-network-endpoints) echo -n 'unknown:unknown:10.0.0.7,unknown:unknown:10.0.0.8' ;;
*agent-worker-number) echo -n 1 ;;
esac""",
        dsrl='printf "%s\\n" "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID" "$@"',
    )
    done = run('tpu_vm.sh', *ARGUMENTS, environment=environment, TPU='t', ZONE='z')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ['10.0.0.7:8476 2 1', *ARGUMENTS]
    log = pathlib.Path(environment['LOG']).read_text()
    assert 'create' not in log and 'delete' not in log, 'reused, and kept'
    run('tpu_vm.sh', 'delete', environment=environment, TPU='t', ZONE='z')
    assert 'queued-resources delete t --zone=z' in pathlib.Path(environment['LOG']).read_text()

"""A real Slurm on this machine runs launch/slurm.sbatch, requeued in the middle and by itself.

Opt-in, because it takes minutes: a requeued job waits about two before it may start.

    apt-get install slurmctld slurmd slurm-client munge
    DSRL_SLURM=1 python -m pytest -s tests/test_slurm.py        # as root

One node of two CPUs under this user, with keys, ports and state of its own.
"""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest
from refusals import TINY

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'scontrol', 'squeue')

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get('DSRL_SLURM') != '1', reason='DSRL_SLURM=1 asks for it'),
]

CONF = """
ClusterName=dsrl
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=120
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope='module')
def slurm(tmp_path_factory):
    """The environment in which sbatch reaches a cluster of this one machine."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    assert not missing, f'{missing} not installed: see the top of this file'
    folder = tmp_path_factory.mktemp('slurm')
    for name in ('state', 'spool'):
        (folder / name).mkdir()
    (folder / 'munge.key').write_bytes(os.urandom(128))
    (folder / 'munge.key').chmod(0o600)
    host, ports = socket.gethostname(), (_free_port(), _free_port())
    (folder / 'slurm.conf').write_text(CONF.format(host=host, ports=ports, folder=folder))
    environment = os.environ | {
        'SLURM_CONF': str(folder / 'slurm.conf'),
        'PATH': f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}',
        'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}',
        'JAX_NUM_CPU_DEVICES': '1',
    }
    files = [f'--{name}-file={folder}/munge.{name}' for name in ('key', 'pid', 'log', 'seed')]
    daemons = [
        ['munged', '--force', '--foreground', f'--socket={folder}/munge.socket', *files],
        ['slurmctld', '-D', '-c'],
        ['slurmd', '-D', '-N', host],
    ]
    started = []
    try:
        for command in daemons:
            with open(folder / f'{command[0]}.out', 'wb') as output:
                started.append(
                    subprocess.Popen(command, env=environment, stdout=output, stderr=output)
                )
            time.sleep(2)
        yield environment
        subprocess.run(['scancel', '--full', '--signal=KILL', '--user=root'], env=environment)
        time.sleep(5)
    finally:
        for daemon in reversed(started):
            daemon.terminate()
            daemon.wait(60)


def test_a_requeued_job_resumes_and_finishes(slurm, tmp_path):
    job, log, workdir = _submit(slurm, tmp_path, '--time=30', steps=200)
    _wait(slurm, job, lambda: _steps(workdir) >= 20, 'twenty steps')
    _run(slurm, 'scontrol', 'requeue', job)
    _finish(slurm, job, log)
    text = log.read_text()
    stopped, resumed = (
        int(re.search(pattern, text)[1])
        for pattern in (r'stopped by SIGTERM after step (\d+)', r'resumed at step (\d+)')
    )
    assert 20 <= stopped == resumed < 200, text
    assert (workdir / 'eval_val/scores.json').is_file() and _steps(workdir) == 200


def test_a_job_whose_time_is_up_saves_and_requeues_itself(slurm, tmp_path):
    flags = ('--time=3', '--signal=TERM@60')
    job, log, workdir = _submit(slurm, tmp_path, *flags, steps=100_000)
    text = _wait(slurm, job, lambda: 'requeued' in log.read_text(), 'its own requeue', log)
    stopped = re.search(r'stopped by SIGTERM after step (\d+)', text)
    assert stopped and 'exit code 143 after 0 restarts' in text, text
    assert (workdir / 'checkpoints' / stopped[1]).is_dir()
    state = _run(slurm, 'scontrol', 'show', 'job', job)
    print(*re.findall(r'(?:JobState|Requeue|Restarts)=\S+', state))
    _run(slurm, 'scancel', job)
    assert 'Restarts=1' in state, state


def _submit(slurm, folder, *flags, steps):
    """Submit a run of the toy network as two CPU tasks: job number, log, workdir."""
    log, workdir = folder / 'job.log', folder / 'run'
    log.touch()
    sizes = ('--ntasks-per-node=2', '--cpus-per-task=1', '--gpus-per-node=0')
    job = _run(
        slurm,
        *('sbatch', '--parsable', *sizes, *flags, f'--output={log}'),
        *('launch/slurm.sbatch', 'train', f'--config={TINY},dsrl=none', f'--config.steps={steps}'),
        f'--workdir={workdir}',
    )
    return job.strip(), log, workdir


def _run(slurm, *command):
    done = subprocess.run(command, env=slurm, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f'{command}: {done.stdout}{done.stderr}'
    print('$', *command, done.stdout.strip(), sep=' ', flush=True)
    return done.stdout


def _steps(workdir):
    """The last step in the log of the run; 0 before it."""
    path = workdir / 'metrics.jsonl'
    found = re.findall(r'"step": (\d+)', path.read_text()) if path.is_file() else []
    return int(found[-1]) if found else 0


def _finish(slurm, job, log):
    def ended():
        return 'JobState=COMPLETED' in _state(slurm, job)

    return _wait(slurm, job, ended, 'the end of the job', log)


def _state(slurm, job):
    command = ('scontrol', 'show', 'job', job)
    return subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=60).stdout


def _wait(slurm, job, done, what, log=None, seconds=900):
    """Wait until `done()`; the text of the log."""
    until = time.monotonic() + seconds
    while not done():
        state = _state(slurm, job)
        text = log.read_text() if log else ''
        assert 'JobState=FAILED' not in state, state + text
        assert time.monotonic() < until, f'no {what} in {seconds} s: {state}{text}'
        time.sleep(1)
    return log.read_text() if log else ''


def _free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]

"""Launch files: scripts are sound, manifests fit their reference, every command is understood.

Nothing here asks the network. local.sh is run with real processes.
"""

import copy
import math
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from dsrl_jax import cli, config
from dsrl_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAUNCH = ROOT / 'launch'
SCRIPTS = [*sorted(LAUNCH.glob('*.sh')), LAUNCH / 'slurm.sbatch', ROOT / '.ci/run']
STARTERS = [LAUNCH / n for n in ('local.sh', 'slurm.sbatch', 'tpu_vm.sh', 'xpk.sh')]
MANIFESTS = sorted(LAUNCH.glob('jobset-*.yaml'))
TOY = '--config=synthetic:tiny,dsrl=none,net=toy_network:Toy'

# A value fits a type, a pattern, one of a set, the one form of a list's items, or a dict of keys:
# '?' marks those that may be absent, `str` as a key any. What is not named here is refused: this is
# the part of JobSet v1alpha2, Job and Pod that the manifests use, as their references have it.
DNS = re.compile(r'[a-z0-9]([-a-z0-9]*[a-z0-9])?')
QUANTITY = re.compile(r'[0-9]+([kMGT]i?)?')
FIELD = {'fieldRef': {'fieldPath': re.compile(r"metadata\.(labels|annotations)\['[\w./-]+'\]")}}
CONTAINER = {
    'name': DNS,
    'image': re.compile(r'[\w./-]+:[\w.-]+'),
    'command': [str],
    'args': [str],
    '?env': [{'name': re.compile(r'[A-Z_]+'), '?value': str, '?valueFrom': FIELD}],
    '?ports': [{'containerPort': int}],
    'resources': {'limits': {re.compile(r'(nvidia|google)\.com/(gpu|tpu)'): int}},
    '?volumeMounts': [{'name': DNS, 'mountPath': re.compile(r'/[\w/]+')}],
}
POD = {
    'restartPolicy': {'Never'},
    '?terminationGracePeriodSeconds': int,
    '?nodeSelector': {re.compile(r'[a-z.]+/[a-z-]+'): str},
    'containers': [CONTAINER],
    '?volumes': [
        {
            'name': DNS,
            '?persistentVolumeClaim': {'claimName': DNS, '?readOnly': bool},
            '?emptyDir': {'?medium': {'', 'Memory'}, '?sizeLimit': QUANTITY},
        }
    ],
}
EXIT_CODES = {'?containerName': DNS, 'operator': {'In', 'NotIn'}, 'values': [int]}
JOB = {
    'parallelism': int,
    'completions': int,
    'completionMode': {'Indexed'},
    'backoffLimit': int,
    '?podFailurePolicy': {
        'rules': [{'action': {'FailJob', 'Ignore', 'Count'}, 'onExitCodes': EXIT_CODES}]
    },
    'template': {'?metadata': {'?labels': {str: str}}, 'spec': POD},
}
RULE = {
    'name': re.compile(r'[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?'),
    'action': {'FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts'},
    '?onJobFailureReasons': [
        {'BackoffLimitExceeded', 'DeadlineExceeded', 'FailedIndexes', 'PodFailurePolicy'}
    ],
    '?targetReplicatedJobs': [DNS],
}
JOBSET = {
    'apiVersion': {'jobset.x-k8s.io/v1alpha2'},
    'kind': {'JobSet'},
    'metadata': {'name': DNS, '?labels': {str: str}, '?annotations': {str: str}},
    'spec': {
        '?failurePolicy': {'maxRestarts': int, '?rules': [RULE]},
        'replicatedJobs': [{'name': DNS, 'replicas': int, 'template': {'spec': JOB}}],
    },
}
SKYPILOT = {
    'name': DNS,
    'num_nodes': int,
    'resources': {
        'accelerators': re.compile(r'\w+:\d+'),
        'use_spot': bool,
        'job_recovery': {
            'strategy': {'EAGER_NEXT_REGION', 'FAILOVER'},
            'max_restarts_on_errors': int,
            'recover_on_exit_codes': [int],
        },
    },
    'envs': {re.compile(r'[A-Z_]+'): str},
    'workdir': str,
    'file_mounts': {re.compile(r'/\w+'): {'name': str, 'mode': {'MOUNT', 'COPY', 'MOUNT_CACHED'}}},
    'setup': str,
    'run': str,
}


def misfits(value, form, where='') -> list[str]:
    """What does not fit, each with its place."""
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return [f'{where} is no mapping']
        free = [key for key in form if not isinstance(key, str)]
        named = {key.lstrip('?'): key for key in form if isinstance(key, str)}
        bad = [f'{where}.{name} is missing' for name in set(named.values()) & set(named) - {*value}]
        for key, item in value.items():
            known = named.get(key) or next((k for k in free if not misfits(key, k)), None)
            inner = f'{where}.{key}'
            bad += misfits(item, form[known], inner) if known else [f'{inner} is unknown']
        return bad
    if isinstance(form, list):
        items = value if isinstance(value, list) and value else None
        if items is None:
            return [f'{where} is no list']
        return [b for n, item in enumerate(items) for b in misfits(item, form[0], f'{where}[{n}]')]
    if isinstance(form, re.Pattern):
        fits = isinstance(value, str) and form.fullmatch(value)
    elif isinstance(form, set):
        fits = value in form
    else:
        fits = type(value) is form
    return [] if fits else [f'{where} is {value!r}']


def load(path):
    return yaml.safe_load(path.read_text(encoding='utf-8'))


def pod(manifest):
    (job,) = manifest['spec']['replicatedJobs']
    spec = job['template']['spec']
    (container,) = spec['template']['spec']['containers']
    return job, spec, spec['template']['spec'], container


def understood(words):
    """The configuration of a train command whose verb exists and whose flags and fields parse."""
    _, args = cli.parse(*words)
    assert words[0] == 'train'
    return config.load(args.config, args.overrides)


def processes():
    """The environment in which a script finds `dsrl` and the toy network."""
    return {
        **os.environ,
        'PATH': f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}',
        'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}',
    }


def local(*words):
    return ['bash', LAUNCH / 'local.sh', *words]


def test_shellcheck_finds_nothing():
    near = pathlib.Path(sys.executable).with_name('shellcheck')
    program = near if near.is_file() else shutil.which('shellcheck')
    if not program:
        pytest.skip('shellcheck is not installed (extra dev)')
    done = subprocess.run([program, '--shell=bash', *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize('path', STARTERS, ids=lambda path: path.name)
def test_a_script_takes_a_dsrl_command_and_shows_one_that_is_understood(path):
    text = path.read_text(encoding='utf-8')
    assert re.search(r'\bdsrl ("\$@"|\$\(printf \'%q \' "\$@"\))', text)
    usage = re.sub(r'\\\n# +', '', ''.join(re.findall(r'^#(?!!).*\n', text, re.M)))
    shown = re.findall(rf'launch/{path.name} (?:\d+ -- )?(train .*)', usage)
    assert shown, 'no example of a command at its top'
    for line in shown:
        understood(shlex.split(line))
    never = 'Not executed here' in usage
    assert never == (path.name != 'local.sh'), 'say at the top what was not executed'


@pytest.mark.parametrize('path', MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_fits_the_reference_and_itself(path):
    manifest = load(path)
    assert misfits(manifest, JOBSET) == []
    job, spec, inner, container = pod(manifest)
    settings = understood([*container['command'], *container['args']][1:])
    assert container['command'] == ['dsrl']
    assert 'kueue.x-k8s.io/queue-name' in manifest['metadata']['labels']
    assert spec['parallelism'] == spec['completions']
    mounted = {mount['name'] for mount in container['volumeMounts']}
    assert mounted == {volume['name'] for volume in inner['volumes']}
    for rule in spec['podFailurePolicy']['rules']:
        assert rule['onExitCodes']['containerName'] == container['name']
        assert rule['onExitCodes']['values'] == [UserError('', '', '', '').code], 'others restart'
    (devices,) = container['resources']['limits'].values()
    devices *= spec['parallelism'] * job['replicas']
    assert settings.data.batch_size % devices == settings.data.eval_batch_size % devices == 0
    assert 'Not executed here' in path.read_text(encoding='utf-8').split('apiVersion')[0]


def test_the_processes_of_the_gpu_manifest_find_each_other():
    manifest = load(LAUNCH / 'jobset-gpu.yaml')
    job, spec, _, container = pod(manifest)
    env = {e['name']: e.get('value', e.get('valueFrom')) for e in container['env']}
    assert [*env].index('JOBSET') < [*env].index('JAX_COORDINATOR_ADDRESS'), 'it is used there'
    address = env['JAX_COORDINATOR_ADDRESS'].replace('$(JOBSET)', manifest['metadata']['name'])
    host, port = address.split(':')
    name = manifest['metadata']['name']
    assert host == f'{name}-{job["name"]}-0-0.{name}'
    assert {'containerPort': int(port)} in container['ports']
    assert env['JAX_NUM_PROCESSES'] == str(spec['parallelism']) and job['replicas'] == 1
    assert 'job-completion-index' in env['JAX_PROCESS_ID']['fieldRef']['fieldPath']


def test_the_tpu_manifest_asks_for_the_whole_slice():
    _, spec, inner, container = pod(load(LAUNCH / 'jobset-tpu.yaml'))
    topology = inner['nodeSelector']['cloud.google.com/gke-tpu-topology']
    chips = container['resources']['limits']['google.com/tpu'] * spec['parallelism']
    assert chips == math.prod(map(int, topology.split('x')))
    assert not any(e['name'].startswith('JAX_') for e in container.get('env', ())), 'GKE tells'


@pytest.mark.parametrize(
    ('place', 'key', 'value', 'word'),
    [
        ('spec', 'replicatedJob', [], 'spec.replicatedJob is unknown'),
        ('spec.replicatedJobs.0', 'replicas', 'one', "replicas is 'one'"),
        ('spec.failurePolicy.rules.0', 'name', 'user-error', "name is 'user-error'"),
        ('spec.replicatedJobs.0.template.spec', 'backOffLimit', 1, 'backOffLimit is unknown'),
        ('spec.replicatedJobs.0.template.spec.template.spec', 'containers', [], 'is no list'),
        ('spec.replicatedJobs.0.template.spec.template', 'spec', {}, 'restartPolicy is missing'),
    ],
)
def test_the_check_of_manifests_refuses(place, key, value, word):
    manifest = node = copy.deepcopy(load(MANIFESTS[0]))
    for part in place.split('.'):
        node = node[int(part) if part.isdecimal() else part]
    node[key] = value
    assert word in '; '.join(misfits(manifest, JOBSET))


def test_skypilot_recovers_and_starts_a_command_that_is_understood():
    path = LAUNCH / 'skypilot.yaml'
    task = load(path)
    assert misfits(task, SKYPILOT) == []
    settings = understood(shlex.split(task['envs']['COMMAND']))
    assert re.search(r'^dsrl \$COMMAND$', task['run'], re.M)
    for name in ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'):
        assert f'export {name}=' in task['run']
    devices = task['num_nodes'] * int(task['resources']['accelerators'].split(':')[1])
    assert settings.data.batch_size % devices == settings.data.eval_batch_size % devices == 0
    assert task['resources']['job_recovery']['recover_on_exit_codes'] == [75, 134, 143]
    for script in (task['setup'], task['run']):
        done = subprocess.run(['bash', '-n'], input=script, capture_output=True, text=True)
        assert done.returncode == 0 and script.startswith('set -euo pipefail'), done.stderr
    assert 'Not executed here' in path.read_text(encoding='utf-8').split('name:')[0]


@pytest.mark.slow
def test_local_processes_train_and_sigterm_saves(tmp_path):
    kept = ('--config.optimizer.schedule=constant', '--config.steps_per_dispatch=1')
    stopped, whole = tmp_path / 'stopped', tmp_path / 'whole'
    environment, log = processes(), stopped / 'metrics.jsonl'
    command = local('2', '--', 'train', TOY, *kept)
    started = subprocess.Popen(
        [*command, '--config.steps=100000', f'--workdir={stopped}'],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until = time.monotonic() + 240
    while not (log.is_file() and '"step": 2' in log.read_text()) and time.monotonic() < until:
        assert started.poll() is None, started.stdout.read()
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    output = started.communicate(timeout=120)[0]
    assert started.returncode == 143, output
    step = re.findall(r'stopped by SIGTERM after step (\d+)', output)
    assert len(step) == 1 and (stopped / 'checkpoints' / step[0]).is_dir(), output

    done = subprocess.run(
        [*command, '--config.steps=3', f'--workdir={whole}'],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (whole / 'checkpoints/3').is_dir() and (whole / 'eval_val/scores.json').is_file()


@pytest.mark.parametrize(
    ('words', 'code', 'seconds'),
    [
        (['2', '--', 'trian'], 2, 60),
        (['two', '--', 'train'], 2, 10),
        (['2', 'train'], 2, 10),
        (['2', '--'], 2, 10),
    ],
)
def test_local_says_what_is_wrong(words, code, seconds):
    done = subprocess.run(
        local(*words), env=processes(), capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == code and 'error: ' in done.stderr, done.stderr


def test_local_ends_all_when_one_fails(tmp_path):
    program = tmp_path / 'dsrl'  # a command of which process 1 fails and the others hang
    program.write_text('#!/bin/sh\n[ "$JAX_PROCESS_ID" = 1 ] && exit 7\nexec sleep 300\n')
    program.chmod(0o755)
    environment = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'GRACE': '1'}
    done = subprocess.run(local('3', '--', 'train'), env=environment, timeout=60)
    assert done.returncode == 7

"""Several processes are one run: the same numbers, one writer, one end."""

import json
import signal
import time

import numpy as np
import process_run
import pytest
from refusals import refused

from dsrl_jax import parallel
from dsrl_jax.records import read_metrics

# The curve of Adam is no test: it follows the sign of gradients that are zero but for rounding.
RUN = (
    *('train', '--config=synthetic:tiny,dsrl=full', '--config.model.net=toy_network:Toy'),
    *('--config.steps=20', '--config.optimizer.name=sgd', '--config.optimizer.lr=0.01'),
    *('--config.eval.pictures=1', '--config.checkpoint.every=15'),
)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """{processes: folder} of the same run on four devices."""
    folders = {}
    for count in (1, 2, 4):
        folder = folders[count] = tmp_path_factory.mktemp(f'processes_{count}')
        words = (*RUN, f'--workdir={folder / "run"}')
        codes = process_run.finish(process_run.start(folder, count, 4 // count, *words))
        assert codes == [0] * count, (folder / 'output_0').read_text()
    return folders


def curve(folder):
    records = [r for r in read_metrics(folder / 'run') if 'train/total' in r]
    return np.array([[r[f'train/{k}'] for k in ('ce', 'mse', 'fa', 'total')] for r in records])


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
def test_the_loss_of_several_processes_is_that_of_one(runs, count):
    one, several = curve(runs[1]), curve(runs[count])
    assert one.shape == (20, 4) and one[-1, -1] < one[0, -1]
    np.testing.assert_allclose(several, one, rtol=1e-5)


@pytest.mark.slow
def test_only_the_first_process_writes(runs):
    folder = runs[2]
    mine, other = ((folder / f'written_{i}').read_text().splitlines() for i in (0, 1))
    run = str(folder / 'run')
    assert any(path.startswith(run) for path in mine)
    assert other and not [path for path in other if path.startswith(run)]
    assert not list((folder / 'run' / 'checkpoints').rglob('*process_1'))
    first, second = ((folder / f'output_{i}').read_text() for i in (0, 1))
    for words in ('step 20/20', 'mIoU', 'parameters', 'goodput'):  # Gloo speaks on both
        assert words in first and words not in second


@pytest.mark.slow
def test_every_image_is_counted_once(runs):
    """The eight images of val in batches of four, by one process and by two."""
    found = []
    for count in (1, 2):
        folder = runs[1] / f'eval_{count}'
        words = ('eval', f'--workdir={runs[1] / "run"}', f'--output={folder / "scores"}')
        running = process_run.start(folder, count, 4 // count, *words)
        assert process_run.finish(running) == [0] * count, (folder / 'output_0').read_text()
        found.append(json.loads((folder / 'scores' / 'scores.json').read_text()))
    one, two = found
    assert one['images'] == 8 and one.keys() == two.keys()
    for name, value in one.items():
        if name in ('psnr', 'ssim', 'bicubic_psnr', 'bicubic_ssim'):
            assert two[name] == pytest.approx(value, rel=1e-6)
        else:
            assert two[name] == value, name


@pytest.mark.slow
def test_a_signal_to_one_stops_all_after_the_same_step_and_the_run_goes_on(tmp_path, runs):
    """The second start is cut off at one process without a word: the other one says so."""
    words = [*RUN, f'--workdir={tmp_path / "run"}', '--config.steps=100000', '--config.log.every=1']
    words += ['--config.eval.every=0', '--config.checkpoint.every=100000']
    running = process_run.start(tmp_path / 'first', 2, 2, *words)
    wait_for_step(tmp_path, 2)
    running[1].send_signal(signal.SIGTERM)
    assert process_run.finish(running) == [143, 143]
    (saved,) = [int(p.name) for p in (tmp_path / 'run' / 'checkpoints').iterdir()]
    said = (tmp_path / 'first' / 'output_0').read_text()
    assert f'stopped by SIGTERM after step {saved}; saved' in said

    running = process_run.start(tmp_path / 'second', 2, 2, *words)
    wait_for_step(tmp_path, saved + 2)
    running[1].kill()
    code, _ = process_run.finish(running)
    said = (tmp_path / 'second' / 'output_0').read_text()
    assert f'resumed at step {saved}' in said
    # While it waits in JAX's own service, JAX may be the first to end it.
    assert code in (parallel.LOST, -signal.SIGABRT), said
    assert code != parallel.LOST or 'expected all 2 processes alive' in said.splitlines()[-1]
    steps = [r['step'] for r in read_metrics(tmp_path / 'run')]
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] > saved


def wait_for_step(folder, step, seconds=240):
    path = folder / 'run' / 'metrics.jsonl'
    for _ in range(10 * seconds):
        if path.exists() and read_metrics(path)[-1:] and read_metrics(path)[-1]['step'] >= step:
            return
        time.sleep(0.1)
    raise AssertionError(f'no step {step} in {path}')


def test_a_process_that_stays_away_is_a_line(tmp_path):
    words = (*RUN, f'--workdir={tmp_path / "run"}', '--start_timeout=2')
    running = process_run.start(tmp_path, 2, 2, *words)
    running[1].kill()
    assert process_run.finish(running)[0] == parallel.LOST
    lines = (tmp_path / 'output_0').read_text().splitlines()
    assert lines[-1].startswith('error: process 0: found some of the others missing; expected')
    assert '--start_timeout' in lines[-1]


@pytest.mark.parametrize(
    ('words', 'named'),
    [
        (['--num_processes=2'], ['no --coordinator', 'JAX_COORDINATOR_ADDRESS']),
        (['--coordinator=here', '--num_processes=2', '--process_id=0'], ["'here'", 'HOST:PORT']),
        (['--coordinator=a:1', '--num_processes=two', '--process_id=0'], ["'two'", 'number']),
        (['--coordinator=a:1', '--num_processes=2', '--process_id=2'], ['below the 2']),
    ],
)
def test_half_a_description_of_the_processes_is_refused(words, named, capsys, tmp_path):
    refused(capsys, [*RUN, *words, f'--workdir={tmp_path / "run"}'], *named)


@pytest.mark.parametrize(
    ('variables', 'name'),
    [
        ({'SLURM_STEP_NUM_TASKS': '2'}, 'Slurm'),
        ({'OMPI_COMM_WORLD_SIZE': '4'}, 'Open MPI'),
        ({'TPU_WORKER_HOSTNAMES': 'a,b'}, 'a TPU pod'),
        ({'MEGASCALE_COORDINATOR_ADDRESS': 'a'}, 'a TPU pod'),
        ({'SLURM_STEP_NUM_TASKS': '1', 'SLURM_NTASKS': '2'}, None),  # in the batch script itself
        ({'TPU_WORKER_HOSTNAMES': 'a'}, None),
        ({}, None),
    ],
)
def test_launchers_are_known_by_their_environment(variables, name, monkeypatch):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert parallel.launcher() == name

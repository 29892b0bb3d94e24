"""A ladder of small runs: selection, freezing, one reading of the test split, going on."""

import contextlib
import json
import shutil

import jax
import numpy as np
import pytest

from dsrl_jax import (
    cli,
    data,
    experiment,
    inference,
    ladder,
    parallel,
    resident,
    state,
    tasks,
)
from dsrl_jax.errors import UserError
from dsrl_jax.ladder import Ladder
from dsrl_jax.rungs import GRID

NAMES = ('reference', 'full', 'equal_time')


@pytest.fixture(scope='module')
def plan(tmp_path_factory):
    home = tmp_path_factory.mktemp('ladder') / 'w'
    return Ladder(
        home, 'synthetic', net='toy_network:Toy', names=NAMES, seeds=2, scouts=1, tiny=True
    )


@pytest.fixture(scope='module')
def done(plan):
    """The whole ladder, selection and final runs."""
    with pytest.MonkeyPatch.context() as patch:
        # What the process had set is not the ladder's to change for the other tests.
        patch.setenv('JAX_COMPILATION_CACHE_DIR', jax.config.jax_compilation_cache_dir or '')
        assert ladder.run_all(plan, ladder.plan_select(plan))
        ladder.freeze(plan)
        assert ladder.run_all(plan, ladder.plan_final(plan))
    return ladder.results(plan)


def test_final_runs_need_a_selection(tmp_path):
    with pytest.raises(
        UserError, match=r'no selection of full.*run the ladder without --final first'
    ):
        list(ladder.plan_final(Ladder(tmp_path, names=('full',))))


def test_camvid_selects_on_held_out_drives_and_never_on_test(tmp_path):
    runs = list(ladder.plan_select(Ladder(tmp_path, names=('reference',), scouts=3)))
    assert len(runs) == 6 * 3 * 3
    assert {run.splits for run in runs} == {(f'fold{n}_val',) for n in (1, 2, 3)}
    assert len({run.folder for run in runs}) == len(runs)
    first = ladder.plan_select(Ladder(tmp_path, names=('reference',), scouts=3, grid=GRID[:1]))
    assert list(first) == runs[:9]


def test_every_seed_of_every_rung_is_there_with_its_circumstances(plan, done):
    assert {name: sorted(runs) for name, runs in done.items()} == {name: [0, 1] for name in NAMES}
    for runs in done.values():
        for seed, result in runs.items():
            assert result['seed'] == seed == result['config']['seed']
            assert {'commit', 'device', 'versions', 'date', 'curve'} <= set(result)
            assert set(result['scores']) == {'test'}
    arrays = experiment.counts(plan.workdir / 'final/full/seed0', 'test')
    assert len(arrays['names']) == done['full'][0]['scores']['test']['images']


def test_every_run_of_the_selection_is_a_line(plan, done):
    lines = (plan.workdir / 'select/runs.jsonl').read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row['rung'] for row in rows] == sorted(NAMES)
    frozen = json.loads((plan.workdir / 'selected.json').read_text())
    for row in rows:
        assert [100 * row['scores']['val']['miou']] == frozen[row['rung']]['table'][0]['runs']


def test_lines_of_runs_say_no_folder_of_this_machine(tmp_path):
    config = {'data': {'root': str(tmp_path), 'name': 'camvid'}, 'seed': 0, 'size': [1, 2]}
    ladder.write_runs(tmp_path / 'runs.jsonl', [('full', {'config': config})])
    (line,) = (tmp_path / 'runs.jsonl').read_text().splitlines()
    expected = {**config, 'data': {'root': tmp_path.name, 'name': 'camvid'}}
    assert json.loads(line) == {'rung': 'full', 'config': expected}


def test_arms_of_a_seed_begin_with_the_same_network_and_see_the_same_images(tmp_path):
    """The initial numbers of the shared network and the first batches, read and held in memory."""
    names = ('reference', 'full', 'recommended', 'shuffled')
    tiny = {'net': 'toy_network:Toy', 'tiny': True, 'seeds': 2, 'scouts': 2}
    begun = {}
    for run in ladder.plan_select(Ladder(tmp_path, 'synthetic', names=names, **tiny)):
        config = ladder.configuration(Ladder(tmp_path, 'synthetic', **tiny), run)
        source = data.build(config.data, config.data.train_split)
        network = inference.build_network(config, len(source.classes))
        key = jax.random.key(config.seed, impl='rbg')  # as initial_state draws it
        small = inference.input_size(config, config.data.size)
        params = state.init_variables(network, small, key)['params']['network']
        mesh = parallel.make_mesh()
        where = {'start': 0, 'process_index': 0, 'process_count': 1}
        batches = tasks.of(source).train_batches(
            source, config, seed=config.seed, batch_size=config.data.batch_size, **where
        )
        with contextlib.closing(batches):
            seen = [jax.tree.map(np.array, next(batches)) for _ in range(2)]
        held = resident.place(source, mesh, False)
        drawn = jax.jit(resident.make_batch(held, config, mesh))(held, 1, config.seed)
        begun[run.rung, run.seed] = jax.tree.map(np.asarray, (params, seen, drawn))
    for (_, seed), mine in begun.items():
        jax.tree.map(np.testing.assert_array_equal, mine, begun['reference', seed])
    for mine, other in zip(begun['reference', 0], begun['reference', 1]):
        leaves = zip(jax.tree.leaves(mine), jax.tree.leaves(other))
        assert any((a != b).any() for a, b in leaves), 'seeds differ'


def test_equal_time_trains_as_long_as_full(done):
    reference, full, longer = (done[name][0] for name in NAMES)
    want = round(reference['steps'] * full['minutes'] / reference['minutes'])
    assert longer['steps'] == max(1, want)


def test_an_interrupted_ladder_does_only_what_is_missing(plan, done):
    kept = {
        run.folder: experiment.read(plan.workdir / run.folder) for run in ladder.plan_final(plan)
    }
    lost = plan.workdir / 'final/reference/seed1'
    shutil.rmtree(lost)
    assert ladder.run_all(plan, ladder.plan_final(plan))
    for folder, before in kept.items():
        after = experiment.read(plan.workdir / folder)
        if folder == 'final/reference/seed1':
            assert after['date'] >= before['date'] and after['scores'] == before['scores']
        else:
            assert after == before
    reads = [
        json.loads(line) for line in (plan.workdir / 'test_reads.jsonl').read_text().splitlines()
    ]
    assert len(reads) == len(kept) + 1  # the lost one was read again, and that is written down


def test_the_test_split_is_not_read_for_a_second_configuration(plan, done):
    path = plan.workdir / 'selected.json'
    before = path.read_text()
    chosen = json.loads(before)
    chosen['reference']['lr'] = 0.5
    path.write_text(json.dumps(chosen))
    shutil.rmtree(plan.workdir / 'final/reference/seed0')
    try:
        with pytest.raises(UserError, match='read once for a frozen configuration'):
            ladder.run_all(plan, ladder.plan_final(plan))
        assert not (plan.workdir / 'final/reference/seed0').exists()
    finally:
        path.write_text(before)
        assert ladder.run_all(plan, ladder.plan_final(plan))


def test_a_folder_of_another_ladder_is_refused(plan, done):
    with pytest.raises(UserError, match=r'epochs None.*5, as asked for'):
        ladder.run_all(plan._replace(epochs=5), [])
    path = plan.home / 'ladder.json'
    kept = path.read_text()
    try:  # written before there were these settings
        old = {k: v for k, v in json.loads(kept).items() if k not in ('grid', 'view', 'width')}
        path.write_text(json.dumps(old))
        assert ladder.run_all(plan, [])
        with pytest.raises(UserError, match=r"grid .*'lr': 0.3.*, as asked for"):
            ladder.run_all(plan._replace(grid=({'lr': 0.3, 'decay': 0.0},)), [])
    finally:
        path.write_text(kept)


def test_a_folder_of_another_configuration_is_refused(plan, done):
    run = next(ladder.plan_final(plan))
    config = ladder.configuration(plan, run).copy_and_resolve_references()
    config.optimizer.lr = 0.123
    with pytest.raises(UserError, match=r'optimizer.lr: 0.01 there, 0.123 asked for'):
        experiment.run(config, plan.workdir / run.folder)


def test_the_command_writes_tables_and_a_plot(plan, done, capsys):
    flags = f'--dataset=synthetic --tiny --net=toy_network:Toy --rungs={",".join(NAMES)} --seeds=2'
    command = ['reproduce', 'ladder', *flags.split(), '--final', f'--workdir={plan.workdir}']
    assert cli.main(command) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary['contrasts']['full - reference']['seeds'] == 2
    folder = plan.workdir / 'report'
    assert len((folder / 'runs.jsonl').read_text().splitlines()) == 6
    assert 'full - reference' in (folder / 'ladder.md').read_text()
    assert (folder / 'ladder.png').stat().st_size > 5000


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--rungs=refrence'], "did you mean 'reference'"),
        (['--dataset=cityscape'], 'camvid'),
        (['--tiny'], '--dataset=synthetic'),
        (['--seeds=0'], 'a number above 0'),
        (['--seeds=21'], 'at most 20'),
        (['--grid=0.1'], 'as 0.1/0.0005'),
        (['--grid=0.1/0,nan/0.1'], "found 'nan/0.1'"),
        (['--view=192'], 'HEIGHTxWIDTH'),
        (['--width=0'], 'a number above 0'),
        (['--share=2/2'], 'i/n with i below n'),
    ],
)
def test_a_wrong_flag_is_one_line(flags, message, tmp_path, capsys):
    assert cli.main(['reproduce', 'ladder', f'--workdir={tmp_path}', *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1

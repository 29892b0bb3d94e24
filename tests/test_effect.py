"""The size of the effect, read from ladders: known differences, what was not run, refusals."""

import json

import jax
import pytest

from dsrl_jax import cli, effect, ladder
from dsrl_jax import config as configs
from dsrl_jax.ladder import Ladder

NET = 'toy_network:Toy'


def keep(home, rung, seed, miou, *, scale=2, labelled=1.0, thin=0.2):
    """The result of a finished run as it lies on disk."""
    plan = Ladder(home, 'synthetic', net=NET, labelled=labelled, scale=scale)
    run = ladder.Run(rung, seed, f'final/{rung}/seed{seed}', 0.01, 5e-4, None, ('test',))
    folder = plan.home / run.folder
    folder.mkdir(parents=True)
    test = {'miou': miou, 'thin_miou': thin, 'pixel_accuracy': 0.5, 'boundary_iou': [0.1] * 4}
    result = {
        'config': configs.to_dict(ladder.configuration(plan, run)),
        'scores': {'test': test},
        **{'curve': [], 'images_per_second': None, 'minutes': None, 'seed': seed},
    }
    (folder / 'result.json').write_text(json.dumps(result))


@pytest.fixture(scope='module')
def ladders(tmp_path_factory):
    """Two ladders by name; the first has an input size and a share beside the usual point."""
    home = tmp_path_factory.mktemp('ladders')
    for seed, gain in enumerate((0.01, 0.02, 0.03)):
        keep(home / 'scratch', 'reference', seed, 0.4)
        keep(home / 'scratch', 'recommended', seed, 0.4 + gain, thin=None)
        keep(home / 'scratch', 'reference', seed, 0.3, labelled=0.25)
        keep(home / 'scratch', 'recommended', seed, 0.3 - gain, labelled=0.25)
    keep(home / 'scratch', 'recommended', 3, 0.9)  # no reference of that seed: not counted
    keep(home / 'scratch', 'reference', 0, 0.2, scale=4)
    keep(home / 'scratch', 'recommended', 0, 0.25, scale=4)
    keep(home / 'started', 'reference', 0, 0.5)
    return home


@pytest.fixture(scope='module')
def rows(ladders):
    found = effect.measure(ladders)['rows']
    return {(row['ladder'], row['scale'], row['labelled']): row for row in found}


def test_gains_are_paired_over_shared_seeds(rows):
    row = rows['scratch', 2, 1.0]
    gain = row['gains']['miou']
    assert row['seeds'] == 3 and gain['mean'] == pytest.approx(2)
    # t(2) at 97.5 % is 4.3027; the differences 1, 2, 3 have a standard deviation of 1.
    half = 4.302653 / 3**0.5
    assert (gain['low'], gain['high']) == pytest.approx((2 - half, 2 + half), abs=1e-4)
    assert (row['reference'], row['recommended']) == pytest.approx((40, 42))
    assert 'thin' not in row['gains'] and row['gains']['boundary_1']['mean'] == 0
    assert rows['scratch', 2, 0.25]['gains']['miou']['mean'] == pytest.approx(-2)


def test_points_without_both_arms_are_not_run(rows):
    missing = {key for key, row in rows.items() if not row['seeds']}
    assert missing == {
        *(('scratch', *point) for point in ((1, 1.0), (2, 0.5), (2, 0.125))),
        *(('started', *point) for point in effect.POINTS),
    }


def test_cost_is_that_of_each_input_size(rows):
    usual, small = rows['scratch', 2, 1.0]['macs'], rows['scratch', 4, 1.0]['macs']
    assert usual['recommended'] == usual['reference'] == 4 * small['reference']  # a free head
    assert rows['scratch', 2, 0.25]['macs'] == usual


def test_one_seed_has_no_interval_and_no_verdict(rows):
    row = rows['scratch', 4, 1.0]
    assert row['gains']['miou']['low'] is None and row['verdict'] == 'undecided'


def test_the_command_writes_table_numbers_and_picture(ladders, tmp_path, capsys):
    command = ['reproduce', 'effect', f'--workdir={ladders}', f'--output={tmp_path / "out"}']
    assert cli.main(command) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((tmp_path / 'out' / 'effect.json').read_text()) == printed
    table = (tmp_path / 'out' / 'effect.md').read_text().splitlines()
    assert sum('not run' in line for line in table) == 9
    assert len({line.count('|') for line in table if line.startswith('|')}) == 1
    assert '| 1/4 | 1 | 1 | 20.00 | 25.00 | +5.00 (one seed) | undecided |' in '\n'.join(table)
    assert (tmp_path / 'out' / 'effect.png').stat().st_size > 5000


def test_a_folder_of_mixed_settings_is_refused(tmp_path, capsys):
    keep(tmp_path / 'a', 'reference', 0, 0.4)
    keep(tmp_path / 'b', 'recommended', 0, 0.4, labelled=0.5)
    (tmp_path / 'b/labelled0.5/final/recommended').rename(tmp_path / 'a/final/recommended')
    assert cli.main(['reproduce', 'effect', f'--workdir={tmp_path}']) == 2
    assert 'one network, data set, scale and share of labels' in capsys.readouterr().err


@pytest.mark.parametrize('flag', ['--scale=4', '--final', '--split=test'])
def test_flags_it_does_not_read_are_refused(flag, ladders, capsys):
    assert cli.main(['reproduce', 'effect', f'--workdir={ladders}', flag]) == 2
    assert flag.split('=')[0] in capsys.readouterr().err


def test_a_folder_without_ladders_is_refused(tmp_path, capsys):
    assert cli.main(['reproduce', 'effect', f'--workdir={tmp_path}']) == 2
    assert 'no finished run of recommended or reference' in capsys.readouterr().err


def test_it_reads_what_a_ladder_leaves(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', jax.config.jax_compilation_cache_dir or '')
    flags = f'--dataset=synthetic --tiny --net={NET} --scouts=1 --seeds=1 --labelled=0.5'
    command = ['reproduce', 'ladder', *flags.split(), '--rungs=reference,recommended']
    command.append(f'--workdir={tmp_path / "toy"}')
    assert cli.main(command) == 0 and cli.main([*command, '--final']) == 0
    assert cli.main(['reproduce', 'effect', f'--workdir={tmp_path}']) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])['rows']
    assert [(r['ladder'], r['labelled']) for r in rows if r['seeds']] == [('toy', 0.5)]
    # A ladder's own folder is read as well.
    alone = effect.measure(tmp_path / 'toy')['rows']
    assert [r['seeds'] for r in alone] == [r['seeds'] for r in rows]

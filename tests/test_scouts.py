"""Scouting arms: one change each, kept apart from the ladder, and the page that lists them."""

import json
import pathlib

import jax
import pytest
from toy_network import Toy

from dsrl_jax import cli, experiment, inference, ladder, optimizer, rungs
from dsrl_jax import config as configs
from dsrl_jax.errors import UserError
from dsrl_jax.ladder import Ladder
from dsrl_jax.rungs import ARMS, RUNGS, SCOUTS, macs, protocol, scouting


class Coarse(Toy):
    """A small network whose input sizes are as coarse as ESPNetv2's."""

    multiple = 16


PAGE = pathlib.Path(__file__).resolve().parent.parent / 'docs' / 'results' / 'scouting.md'


def flat(config):
    def walk(node, path):
        for name, value in node.items():
            if isinstance(value, dict):
                yield from walk(value, f'{path}{name}.')
            else:
                yield path + name, value

    return dict(walk(configs.to_dict(config), ''))


def test_the_page_has_the_table_of_the_code():
    text = PAGE.read_text(encoding='utf-8')
    assert scouting() in text
    assert all(f'| `{name}` |' in text for name in SCOUTS)


def test_every_arm_has_a_prediction_and_the_default_ladder_has_no_scout():
    assert all(arm.prediction and arm.outcome for arm in SCOUTS.values())
    assert not set(SCOUTS) & set(RUNGS) and not set(Ladder(pathlib.Path()).names) & set(SCOUTS)


def test_an_arm_is_one_change_of_recommended_and_no_two_are_alike():
    base = flat(protocol('camvid', 'recommended', 'espnetv2'))
    seen = []
    for name, arm in SCOUTS.items():
        config = protocol('camvid', name, 'espnetv2')
        configs.check_choices(config)
        mine = flat(config)
        changed = {key: value for key, value in mine.items() if value != base[key]}
        assert bool(changed) != bool(arm.ramp), name
        # In one section, but for a teacher, which brings its own.
        assert arm.needs or len({key.split('.')[0] for key in changed}) <= 1, name
        assert set(changed) <= set(arm.fields)
        assert (changed, arm.ramp) not in seen
        seen.append((changed, arm.ramp))


@pytest.mark.parametrize('name', ['branches_lr_tenth', 'branches_lr_ten'])
def test_learning_rates_change_in_the_new_branches_alone(name):
    config = protocol('synthetic', name, 'toy_network:Toy', tiny=True)
    network = inference.build_network(config, 11)
    params = inference.abstract_variables(network, config)['params']
    factors = optimizer.lr_factors(config.optimizer.lr_groups, params)
    wanted = {'branches_lr_tenth': 0.1, 'branches_lr_ten': 10.0}[name]
    assert {'network', 'sisr', 'transform'} <= set(factors)
    for branch, tree in factors.items():
        assert set(jax.tree.leaves(tree)) == {1.0 if branch == 'network' else wanted}, branch


def test_a_branch_without_norms_has_biases_instead():
    config = protocol('synthetic', 'sisr_no_norm', 'toy_network:Toy', tiny=True)
    variables = inference.abstract_variables(inference.build_network(config, 11), config)
    assert 'sisr' not in variables['batch_stats'] and 'network' in variables['batch_stats']
    blocks = {n: b['conv'] for n, b in variables['params']['sisr'].items() if 'conv' in b}
    assert {'reduce', 'trunk'} <= set(blocks) and all('bias' in conv for conv in blocks.values())


def test_scouts_measure_the_affinities_and_rungs_do_not(tmp_path):
    names = ('stop_gradient', 'no_fa', 'recommended', 'full')
    plan = Ladder(tmp_path, 'synthetic', net='toy_network:Toy', names=names, tiny=True)
    found = {r.rung: ladder.configuration(plan, r).log.affinity for r in ladder.plan_select(plan)}
    assert {name for name, every in found.items() if every} == {'stop_gradient', 'recommended'}


def test_the_ramp_is_a_fifth_of_the_run(tmp_path):
    plan = Ladder(tmp_path, 'synthetic', net='toy_network:Toy', names=('ramp', 'reference'))
    for run in ladder.plan_select(plan):
        config = ladder.configuration(plan, run)
        assert config.fa.ramp == (config.steps // 5 if run.rung == 'ramp' else 0)
    assert config.steps >= 10


@pytest.mark.parametrize(('scale', 'size'), [(1, (384, 480)), (4, (384, 512))])
def test_another_scale_pads_the_view_to_a_legal_size(scale, size):
    config = protocol('camvid', 'reference', 'espnetv2', scale=scale)
    assert (config.scale, tuple(config.data.size)) == (scale, size)
    inference.check_size(inference.build_network(config, 11), config)
    assert tuple(config.data.scale_range) == (0.75, 1.5)


def test_sizes_at_matched_cost_keep_the_images_field_of_view_at_another_scale():
    """What is enlarged is the image of 480 columns, not the view padded to 512."""
    base = protocol('camvid', 'reference', 'test_scouts:Coarse', scale=4)
    assert tuple(base.data.size) == (384, 512)
    target, costs = 1.5 * macs(base), []
    for high in (False, True):
        config = protocol('camvid', 'reference', 'test_scouts:Coarse', scale=4)
        rungs._match(config, (3, 4), target, (480, (0.75, 1.5)), high=high)
        costs.append(macs(config))
        assert config.data.scale_range[0] == pytest.approx(0.75 * config.data.size[1] / 480)
    assert costs[0] < target <= costs[1]
    with pytest.raises(UserError, match='more than the largest size takes'):
        rungs._match(config, (3, 4), 1e15, (480, (0.75, 1.5)), high=True)


def test_ladders_of_other_shares_and_scales_lie_apart(tmp_path):
    plans = [
        Ladder(tmp_path, labelled=share, scale=scale) for share in (1, 0.25) for scale in (1, 2, 4)
    ]
    assert len({plan.home for plan in plans}) == len(plans)
    assert Ladder(tmp_path).home == tmp_path and plans[3].home == tmp_path / 'scale1_labelled0.25'


def test_scouts_are_selected_compared_and_never_read_test(tmp_path, capsys, monkeypatch):
    """Two arms of two steps with a quarter of the labels, through the command."""
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', jax.config.jax_compilation_cache_dir or '')
    flags = '--dataset=synthetic --tiny --net=toy_network:Toy --scouts=1 --seeds=1 --labelled=0.25'
    command = ['reproduce', 'ladder', *flags.split(), f'--workdir={tmp_path}']
    command += ['--rungs=recommended,stop_gradient']
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert 'stop_gradient - recommended' in out and '+0.0 % of reference' in out
    home = tmp_path / 'labelled0.25'
    assert set(json.loads((home / 'selected.json').read_text())) == {'recommended', 'stop_gradient'}
    results = list(home.glob('select/*/*/fold1/seed0/result.json'))
    assert len(results) == 2
    for path in results:
        result = json.loads(path.read_text())
        assert result['config']['data']['labelled'] == 0.25
        assert {'cosine_fa_ce', 'affinity_sr_std'} <= set(result['affinity'][-1])
    assert cli.main([*command, '--final']) == 2
    assert 'scouting arms are judged on the folds' in capsys.readouterr().err
    assert not (home / 'test_reads.jsonl').exists() and not (tmp_path / 'selected.json').exists()


@pytest.mark.parametrize(
    ('flag', 'message'),
    [
        ('--labelled=0', 'a share above 0 and at most 1'),
        ('--labelled=1.5', 'a share above 0 and at most 1'),
        ('--scale=3', 'one of 1, 2, 4'),
        ('--rungs=local5_grid', "did you mean 'local5_grid"),
    ],
)
def test_a_wrong_flag_is_one_line(flag, message, tmp_path, capsys):
    assert cli.main(['reproduce', 'ladder', f'--workdir={tmp_path}', flag]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


@pytest.mark.slow
def test_processes_side_by_side_do_controls_and_taught_arms(tmp_path, monkeypatch, capfd):
    """Teachers first, then what they teach; every flag reaches the processes."""
    monkeypatch.setenv('PYTHONPATH', str(pathlib.Path(__file__).parent))
    names = ['ceiling', 'shuffled', 'distilled', 'guide_both']
    flags = '--dataset=synthetic --tiny --net=toy_network:Toy --scouts=1 --labelled=0.5 --jobs=2'
    command = ['reproduce', 'ladder', *flags.split(), f'--rungs={",".join(names)}']
    assert cli.main([*command, f'--workdir={tmp_path}']) == 0
    out = capfd.readouterr().out
    found = json.loads(out.splitlines()[-1])
    assert set(found['selected']) == set(names) == set(found['macs']) - {'reference'}
    home = tmp_path / 'labelled0.5/select'
    for name in names:
        (path,) = (home / name).glob('*/fold1/seed0/result.json')
        teacher = json.loads(path.read_text())['config']['kd']['teacher']
        taught = name in ('distilled', 'guide_both')
        assert teacher == (str(next((home / 'ceiling').rglob('model'))) if taught else '')


def test_many_processes_share_the_seeds_of_few_rungs(tmp_path, monkeypatch):
    done = []

    def note(config, folder, *_):
        done.append(str(pathlib.Path(folder).relative_to(tmp_path)))
        return {'scores': {}}

    monkeypatch.setattr(experiment, 'run', note)
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', jax.config.jax_compilation_cache_dir or '')
    plan = Ladder(tmp_path, 'synthetic', net='toy_network:Toy', names=('reference', 'full'))
    plan = plan._replace(tiny=True, scouts=3)
    shares = []
    for i in range(4):
        assert ladder.run_all(plan, ladder.plan_select(plan), (i, 4))
        shares.append(set(done))
        done.clear()
    assert sorted(map(len, shares)) == [1, 1, 2, 2] and len(set.union(*shares)) == 6
    assert ladder.run_all(plan, ladder.plan_select(plan), (0, 2))
    assert {name.split('/')[1] for name in done} == {'reference'}


def test_a_stopped_ladder_says_so_by_its_exit_code(tmp_path, monkeypatch):
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', jax.config.jax_compilation_cache_dir or '')
    monkeypatch.setattr(experiment, 'run', lambda *_: None)  # as SIGTERM ends it
    flags = '--dataset=synthetic --tiny --net=toy_network:Toy --rungs=reference --scouts=1'
    assert cli.main(['reproduce', 'ladder', *flags.split(), f'--workdir={tmp_path}']) == 143
    assert not (tmp_path / 'selected.json').exists()


def test_a_name_is_an_arm_once():
    assert list(ARMS) == [*RUNGS, *SCOUTS]
    with pytest.raises(UserError, match='did you mean'):
        protocol('camvid', 'local5_grid3', 'espnetv2')

"""The paper's rows as data, and the configurations that run them."""

import pytest

from dsrl_jax import config as configs
from dsrl_jax import costs, data, inference, models, paper_costs, paper_runs
from dsrl_jax.errors import UserError
from dsrl_jax.paper_tables import TABLES, Row

ROWS = [(name, table, row) for name, table in TABLES.items() for row in table.rows]
PRINTED = [(name, table, row) for name, table, row in ROWS if not row.ours_alone]


def find(name, network, input, dsrl, labels=None):
    (row,) = (
        row
        for row in TABLES[name].rows
        if (row.network, row.input, row.dsrl) == (network, input, dsrl)
        and labels in (None, row.labels)
        and not (labels is None and row.ours_alone)
    )
    return row


def test_printed_gflops_are_those_of_the_costs_and_none_is_left_out():
    for printed in paper_costs.ROWS:
        rows = [
            row
            for row in TABLES[f'table{printed.table}'].rows
            if (row.network, row.input) == (printed.network, printed.input) and not row.ours_alone
        ]
        assert rows and {row.gflops for row in rows} == {printed.printed}
    numbers = {row.printed for row in paper_costs.ROWS}
    assert {row.gflops for _, _, row in ROWS} <= numbers | {None}


def test_rows_are_distinct_and_score_only_what_their_table_measures():
    keys = [(name, r.network, r.input, r.dsrl, r.labels) for name, _, r in ROWS]
    assert len(keys) == len(set(keys))
    for _, table, row in ROWS:
        assert set(row.scores) <= set(table.measures)
        assert all(40 < value < 100 for value in row.scores.values())
        assert row.dsrl in configs.DSRL_MODES and row.count.net in models.NETWORKS
        assert row.labels == 'target' or row.dsrl == 'none'
        assert not (row.ours_alone and (row.scores or row.gflops))


def test_the_same_run_has_the_same_score_in_every_table():
    seen = {}
    for _, _, row in PRINTED:
        for measure, value in row.scores.items():
            assert seen.setdefault((row.network, row.input, row.dsrl, measure), value) == value
    assert seen['ESPNetv2', (512, 1024), 'full', 'val'] == 66.9
    assert seen['ESPNetv2', (256, 512), 'none', 'val'] == 54.5


def test_a_base_that_dsrl_improves_has_its_reference_on_full_size_labels():
    for name, _, row in PRINTED:
        if row.dsrl == 'full' and name != 'table5':
            reference = find(name, row.network, row.input, 'none', 'target')
            assert reference.ours_alone and 'labels of full size' in reference.title


def test_the_ablation_adds_one_part_after_another():
    titles = [row.title for row in TABLES['table1'].rows if row.network == 'ESPNetv2']
    assert titles == [
        'ESPNetv2',
        'ESPNetv2, labels of full size',
        'ESPNetv2 + SSSR',
        'ESPNetv2 + SSSR + SISR',
        'ESPNetv2 + DSRL',
    ]


def test_true_costs_hold_the_head_that_the_paper_leaves_out():
    for input, true in (((256, 512), 1264.28), ((512, 1024), 4 * 1264.28)):
        base = paper_runs._printed_macs(find('table2', 'ESPNetv2', input, 'none'))
        full = paper_runs._printed_macs(find('table2', 'ESPNetv2', input, 'full'))
        assert base['head_macs'] == 0 and full['macs'] == base['macs'] + full['head_macs']
        assert full['macs'] / 1e6 == pytest.approx(true, rel=5e-5)
        printed = float(find('table2', 'ESPNetv2', input, 'full').gflops)
        assert 2 * base['macs'] / 1e9 == pytest.approx(printed, abs=0.006)
    single = paper_runs._printed_macs(find('table3', 'DeepLabv3+', (512, 1024), 'none'))
    several = find('table3', 'DeepLabv3+, 6 scales', (512, 1024), 'none')
    assert paper_runs._printed_macs(several)['macs'] == pytest.approx(8.6875 * single['macs'])


CAMVID = configs.load('camvid')


@pytest.mark.parametrize('name', [name for name in TABLES if name != 'table5'])
def test_every_row_has_a_legal_configuration_of_its_own_network(name):
    table = TABLES[name]
    for row in table.rows:
        planned = paper_runs.plan(row, table, CAMVID)
        configs.check_choices(planned)
        network = inference.build_network(planned, 11)
        inference.check_size(network, planned)
        assert (planned.model.net, planned.model.dsrl) == (row.count.net, row.dsrl)
        assert planned.ce.labels == row.labels
        assert row.times == 1 or row.dsrl == 'none'
    assert CAMVID.model.dsrl == 'full' and CAMVID.data.size == (384, 480), 'left as it was'


def test_smaller_inputs_are_smaller_views_and_larger_ones_the_view_itself():
    table = TABLES['table2']
    half = paper_runs.plan(find('table2', 'ESPNetv2', (256, 512), 'full'), table, CAMVID)
    assert half.data.size == (192, 256) and half.data.eval_fit == 'resize' and half.scale == 2
    zoom = 256 / 480
    assert half.data.scale_range == pytest.approx((0.75 * zoom, 1.5 * zoom))
    same = paper_runs.plan(find('table2', 'ESPNetv2', (512, 1024), 'full'), table, CAMVID)
    assert same.data.size == (384, 480) and same.data.eval_fit == 'pad'
    whole = paper_runs.plan(find('table3', 'FCN', (1024, 2048), 'none'), TABLES['table3'], CAMVID)
    assert whole.scale == 1 and whole.data.size == (384, 480)
    sigmas = {planned.pose.sigma for planned in (half, same, whole)}
    assert sigmas == {CAMVID.pose.sigma}, 'what is of poses is left as it was'


def test_runs_of_different_rows_never_share_a_folder():
    names = {}
    for name in ('table1', 'table2', 'table3'):
        for row in TABLES[name].rows:
            if row.times == 1:
                planned = paper_runs.plan(row, TABLES[name], CAMVID)
                folder = paper_runs.folder_name(planned)
                assert names.setdefault(folder, configs.to_dict(planned)) == configs.to_dict(
                    planned
                )
    assert len({str(value) for value in names.values()}) == len(names)


def test_tiny_runs_two_rows_and_counts_the_others():
    record = paper_runs.describe('table1', configs.load('synthetic:tiny'), True, ('val',))
    run = [line for line in record['rows'] if not line['why']]
    assert [(line['network'], line['dsrl']) for line in run] == [
        ('ESPNetv2', 'none'),
        ('ESPNetv2', 'full'),
    ]
    for line in record['rows']:
        head = line['ours']['head_macs']
        assert 0 <= head < line['ours']['macs'] and (head > 0) == (line['dsrl'] != 'none')
    full = run[-1]['ours']
    classes = data.build(configs.load('synthetic:tiny').data, 'val').classes
    counted = costs.report('espnetv2', (32, 64), num_classes=len(classes), dsrl='full', width=0.5)
    assert full['input'] == [32, 64] and full['macs'] == counted['macs']['inference']


def test_an_unknown_table_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"'table6'.*did you mean 'table"):
        paper_runs.run('table6', CAMVID, tmp_path)


def test_a_row_is_a_base_or_has_a_mode():
    row = find('table1', 'DeepLabv3+', (256, 512), 'sssr')
    assert isinstance(row, Row) and row.title == 'DeepLabv3+ + SSSR' and row.scores == {}

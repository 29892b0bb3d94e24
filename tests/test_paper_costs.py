"""The paper's GFLOPs beside our counts: which rows agree, and what the others are."""

import json

import pytest

from dsrl_jax import flops, models, paper_costs
from dsrl_jax.errors import UserError
from dsrl_jax.paper_costs import Count, Row, Scales

EXACT, NEAR, NONE = paper_costs.VERDICTS
# (table, network): the verdict on all its rows, from counts of the original code.
VERDICTS = {
    (2, 'ESPNetv2'): EXACT,
    (2, 'DeepLabv3+'): NONE,
    (3, 'ENet'): NEAR,
    (3, 'ESPNet'): NEAR,
    (3, 'ERFNet'): EXACT,
    (3, 'FCN'): NEAR,
    (3, 'RefineNet'): EXACT,
    (3, 'PSPNet (ResNet18, 0.5)'): NONE,
    (3, 'PSPNet (ResNet18, 1.0)'): NONE,
    (3, 'PSPNet (ResNet101)'): NONE,
    (3, 'PSPNet (ResNet101), 6 scales'): EXACT,
    (3, 'DeepLabv3+'): NONE,
    (3, 'DeepLabv3+, 6 scales'): EXACT,
    (3, 'BiSeNet'): NONE,
    (3, 'DABNet'): EXACT,
    (3, 'ESPNetv2'): EXACT,
    (4, 'ENet'): EXACT,
    (4, 'ESPNet'): NONE,
    (4, 'ESPNet-C'): NONE,
    (4, 'BiSeNet'): NONE,
    (4, 'DeepLabv3+'): NONE,
    (4, 'ESPNetv2'): EXACT,
    (5, 'HRNet-W32'): EXACT,
}
# The nearest public counts, at 512x1024 unless the row says otherwise: the paper's figure by ours.
RATIOS = {
    'DeepLabv3+': 0.972,
    'PSPNet (ResNet18, 1.0)': 1.019,
    'PSPNet (ResNet101)': 1.00005,
    'BiSeNet': 0.949,
    'FCN': 1.0002,
    'ENet': 1.002,
}
ESPNETV2 = Count('espnetv2', '2 MAC + bias', 20)


def rows(network, table=None):
    return [r for r in paper_costs.ROWS if r.network == network and table in (None, r.table)]


@pytest.mark.parametrize(
    'row', paper_costs.ROWS, ids=lambda row: f'{row.table}-{row.network}-{row.printed}'
)
def test_the_verdict_on_every_row(row):
    found = paper_costs.check(row)
    assert found['verdict'] == VERDICTS[row.table, row.network]
    assert found['ratio'] == pytest.approx(found['paper'] / found['ours'])
    if found['verdict'] == EXACT and row.source.times == 1:
        assert f'{found["ours"]:.2f}' == row.printed
    if found['verdict'] == NEAR:
        assert found['ratio'] == pytest.approx(1, abs=0.0025)
    assert (found['head'] is not None) == (row.table == 5)
    if row.table == 5:  # a transposed 3x3 convolution of 17 heatmaps to 17, from all their pixels
        height, width = row.input
        assert found['head'] == 9 * 17 * 17 * (height // 4) * (width // 4) / 2**30


def test_the_command_prints_all_six_rows_of_table_5(capsys):
    flops.paper('hrnet_w32')
    lines = [text.split() for text in capsys.readouterr().out.splitlines()]
    rows = [words for words in lines if words[:2] == ['5', 'HRNet-W32']]
    assert [words[2] for words in rows] == ['256x192', '+', '160x128', '+', '128x96', '+']
    for plain, dsrl in zip(rows[::2], rows[1::2]):
        assert dsrl[4:6] == plain[2:4] and float(dsrl[6]) > float(plain[4])


@pytest.mark.parametrize('network', RATIOS)
def test_how_far_the_nearest_count_is(network):
    found = paper_costs.check(next(r for r in rows(network, 3)))
    assert found['ratio'] == pytest.approx(RATIOS[network], abs=5e-4 if network != 'FCN' else 5e-5)


def test_digits_decide_then_a_fifth_of_a_percent():
    size = (512, 1024)  # 5.398
    verdicts = {
        printed: paper_costs.check(Row(2, 'ESPNetv2', size, printed, ESPNETV2))['verdict']
        for printed in ('5.4', '5.40', '5.398', '5.39', '5.41', '5.42')
    }
    assert verdicts == {
        '5.4': EXACT,
        '5.40': EXACT,
        '5.398': EXACT,
        '5.39': NEAR,
        '5.41': NEAR,
        '5.42': NONE,
    }


def test_a_scaled_figure_is_read_in_the_place_of_its_factor():
    source = ESPNETV2._replace(size=(256, 512), times=4)  # 4 x 1.3496 = 5.398; 4 x 1.35 = 5.40
    assert paper_costs.check(Row(2, 'ESPNetv2', (512, 1024), '5.40', source))['verdict'] == EXACT
    assert paper_costs.check(Row(2, 'ESPNetv2', (512, 1024), '5.46', source))['verdict'] == NONE


def test_multi_scale_rows_are_the_single_scale_row_by_the_areas_of_the_scales():
    multi = [row for row in paper_costs.ROWS if isinstance(row.source, Scales)]
    assert len(multi) == 2
    for row in multi:
        (single,) = rows(row.network.partition(',')[0], row.table)
        assert row.source.single == single.printed
        assert row.input == single.input and row.source.net == single.source.net
        assert round(float(row.printed) / row.source.times, 2) == float(single.printed)


def test_one_row_of_table_2_breaks_the_proportion_to_the_area():
    per_pixel = {
        r.printed: float(r.printed) * 1e9 / (r.input[0] * r.input[1]) for r in rows('DeepLabv3+', 2)
    }
    odd = per_pixel.pop('548.06')
    spread = max(per_pixel.values()) - min(per_pixel.values())
    assert odd - max(per_pixel.values()) > spread
    (misprint,) = [r for r in rows('DeepLabv3+', 2) if 'misprint' in r.note]
    assert misprint.printed == '548.06' and '548.04' in misprint.note


def test_every_row_names_a_network_and_a_convention():
    assert {(row.table, row.network) for row in paper_costs.ROWS} == set(VERDICTS)
    for row in paper_costs.ROWS:
        assert row.source.net in models.NETWORKS
        assert isinstance(row.source, Scales) or row.source.convention in paper_costs.CONVENTIONS


def test_the_command_prints_the_rows_of_one_network(capsys):
    found = flops.paper('enet')
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == {'rows': found}
    assert [row['paper'] for row in found] == [7.24, 3.61]
    assert lines[2].split()[:5] == ['4', 'ENet', '368x480', '3.61', '3.612']
    assert '1 exact, 1 within 0.2 %, 0 not reproduced' in lines[-2]
    with pytest.raises(UserError, match="did you mean 'hrnet_w32'"):
        flops.paper('hrnet_w48')

"""The arms of the ladder: what they share, what each changes, and sizes at matched cost."""

import pytest

from dsrl_jax import config as configs
from dsrl_jax import rungs
from dsrl_jax.errors import UserError
from dsrl_jax.rungs import CONTRASTS, RUNGS, protocol


def differences(a, b, path=''):
    """{dotted field: (a's, b's)} where two settings differ."""
    found = {}
    for name in {**a, **b}:
        if isinstance(a.get(name), dict):
            found |= differences(a[name], b[name], f'{path}{name}.')
        elif a.get(name) != b.get(name):
            found[path + name] = a.get(name), b.get(name)
    return found


@pytest.mark.parametrize('name', [n for n in RUNGS if not n.startswith('matched')])
def test_a_rung_differs_from_the_reference_in_its_fields_alone(name):
    reference, rung = (
        configs.to_dict(protocol('camvid', n, 'espnetv2')) for n in ('reference', name)
    )
    changed = differences(reference, rung)
    assert set(changed) <= set(RUNGS[name].fields)
    for field, value in RUNGS[name].fields.items():
        config = protocol('camvid', 'reference', 'espnetv2')
        assert field in changed or configs.get(config, field) == value  # a default


def test_the_protocol_is_that_of_the_page():
    config = protocol('camvid', 'reference', 'espnetv2')
    assert tuple(config.data.size) == (384, 480) and config.scale == 2
    assert config.data.batch_size == 16 and config.epochs == 300
    assert (config.optimizer.name, config.optimizer.schedule) == ('sgd', 'poly')
    assert config.ce.labels == 'target' and config.model.dsrl == 'none' and config.ema == 0.999
    assert protocol('camvid', 'paper_base', 'espnetv2').ce.labels == 'input'


def test_sizes_at_matched_cost_bracket_the_true_cost_of_full():
    low, high = (protocol('camvid', f'matched_{side}', 'espnetv2') for side in ('low', 'high'))
    full = rungs.macs(protocol('camvid', 'full', 'espnetv2'))
    assert full == 285_655_922  # with its head; 222,929,522 without
    assert rungs.macs(low) < full <= rungs.macs(high)
    for config in (low, high):
        height, width = config.data.size
        assert height * 4 == width * 3  # the images' own shape: nothing is distorted or padded
        assert config.data.eval_fit == 'resize' and config.model.dsrl == 'none'
        # Objects cover the same part of the view as at the usual size.
        assert config.data.scale_range[0] == pytest.approx(0.75 * width / 480)
    between = rungs.matched_views(16, (3, 4), 2)
    assert between[between.index(tuple(low.data.size)) + 1] == tuple(high.data.size)


def test_another_view_and_width_keep_what_an_image_shows():
    options = {'width': 0.5, 'view': (192, 256)}
    usual, small = (protocol('camvid', 'full', 'espnetv2', **given) for given in ({}, options))
    changed = differences(configs.to_dict(usual), configs.to_dict(small))
    assert set(changed) == {'model.width', 'data.size', 'data.eval_fit', 'data.scale_range'}
    assert tuple(small.data.size) == (192, 256) and small.data.eval_fit == 'resize'
    assert small.data.scale_range[0] == pytest.approx(0.75 * 256 / 480)
    low, high = (
        protocol('camvid', f'matched_{side}', 'espnetv2', **options) for side in ('low', 'high')
    )
    assert rungs.macs(low) < rungs.macs(small) <= rungs.macs(high)
    assert high.data.scale_range[1] == pytest.approx(1.5 * high.data.size[1] / 480)


@pytest.mark.parametrize('view', [(192, 240), (96, 128), (200, 266)])
def test_a_view_that_distorts_or_does_not_fit_is_refused(view):
    with pytest.raises(UserError, match=r'--view.*3:4.*192x256'):
        protocol('camvid', 'reference', 'espnetv2', scale=4, view=view)


def test_an_input_too_small_to_bracket_is_refused(monkeypatch):
    monkeypatch.setitem(rungs._ASPECTS, 'camvid', (960, 1280))  # as if images were that large
    with pytest.raises(UserError, match='the matched cost'):
        protocol('camvid', 'matched_low', 'espnetv2')


def test_needs_and_contrasts_name_rungs():
    for rung in RUNGS.values():
        assert all(need in RUNGS and not RUNGS[need].needs for need in rung.needs)
    for first, second in CONTRASTS.values():
        assert first in RUNGS and (second in RUNGS or second == 'matched')
    with pytest.raises(UserError, match="did you mean 'reference'"):
        protocol('camvid', 'referenc', 'espnetv2')

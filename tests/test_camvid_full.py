"""CamVid at the paper's size: input 368x480, view 736x960, labels of 720x960."""

import json

import pytest
from data_settings import config

from dsrl_jax import cli, data
from dsrl_jax import config as configs
from dsrl_jax.errors import UserError


def test_the_view_is_twice_the_input():
    paper, small = configs.load('camvid:size=368x480').data, configs.load('camvid').data
    assert (paper.size, paper.eval_fit) == ((736, 960), 'resize')
    assert (small.size, small.eval_fit) == ((384, 480), 'pad')
    assert all(edge % 16 == 0 for size in (paper.size, small.size) for edge in size)
    with pytest.raises(UserError, match="did you mean '368x480'"):
        configs.load('camvid:size=360x480')


@pytest.mark.slow
def test_full_frames_train_and_are_scored_at_their_own_size(real_data, tmp_path, capsys):
    """One step on four frames, one evaluation of four, of the real ones."""
    whole, root = real_data / 'camvid_fullres', tmp_path / 'camvid'
    root.mkdir()
    for split in ('train', 'val'):
        lines = (whole / f'{split}.txt').read_text().splitlines()[:4]
        (root / f'{split}.txt').write_text('\n'.join(lines) + '\n')
        for folder in (split, f'{split}annot'):
            (root / folder).symlink_to(whole / folder)
    words = ['--config=camvid:size=368x480,net=toy_network:Toy,dsrl=sssr']
    words += [f'--config.data.root={root}', '--config.ema=0.0']
    words += ['--config.data.batch_size=4', '--config.data.eval_batch_size=4']
    words += ['--config.data.workers=0', '--config.steps=1', '--config.epochs=0.0']
    assert cli.main(['train', *words, f'--workdir={tmp_path / "run"}']) == 0
    assert '4 images of val' in capsys.readouterr().out
    source = data.build(config(root, 'camvid'), 'val')
    labels = [source[index]['label'] for index in range(4)]
    assert {label.shape for label in labels} == {(720, 960)}
    scores = json.loads((tmp_path / 'run/eval_val/scores.json').read_text())
    right = scores['pixel_accuracy'] * sum((label < 255).sum() for label in labels)
    assert right == pytest.approx(round(right), abs=1e-6)  # whole pixels of the original labels

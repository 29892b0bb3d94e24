"""The PyTorch peers equal the public code (golden sets) and, with DSRL around them, ours."""

import functools

import jax
import numpy as np
import pytest
from golden import golden_weights
from golden_sets import DEEP, DEEP_BOUND, EVAL_BOUND, GOLDEN, TRAIN_BOUND
from test_golden import FOLDER, check, stored

from dsrl_jax import config as configs
from dsrl_jax import losses, models
from dsrl_jax.errors import UserError
from dsrl_jax.ops import heatmaps, resize

torch = pytest.importorskip('torch')
from third_party import peers  # noqa: E402
from third_party.peers import dsrl, layers  # noqa: E402
from third_party.peers import heatmaps as peer_heatmaps  # noqa: E402

STEMS = (
    'BiSeNet_R18_torchseg',
    'DABNet',
    'DeepLabv3plus_resnet101_os16',
    'DeepLabv3plus_resnet101_os8',
    'ESPNetv2_s2.0_20',
    'HRNet_w32_pose',
    'PSPNet_resnet101',
    'PSPNet_resnet101_skd',
    'PSPNet_resnet18_skd',
)
# Another option of a peer that a set beside it holds to training in float64, which takes long.
EVALUATED = {'DeepLabv3plus_resnet101_os8', 'PSPNet_resnet101_skd'}
NETWORKS = {
    'bisenet_resnet18': {},
    'dabnet': {},
    'deeplabv3plus_resnet101': {'output_stride': 16},
    'espnetv2': {'width': 0.5},
    'hrnet_w32': {},
    'pspnet_resnet18': {},
    'pspnet_resnet101': {},
}
CLASSES, SIZE = 5, (64, 96)
# What both() compares, by the term of the task: the smallest network there is.
SMALL = {
    'ce': ('espnetv2', {'width': 0.5}),
    'heatmap': ('hrnet_w32', {'modules': (1, 1, 1), 'blocks': 1}),
}


@pytest.mark.parametrize('stem', STEMS)
def test_a_peer_equals_the_public_code(stem):
    """In evaluation, in training, and in the running statistics after that one training step."""
    name, options, _ = GOLDEN[stem]
    with torch.device('meta'):  # no time for initial weights that nobody reads
        network = peers.create(name, dropout=0.0, **options)
    given = golden_weights.state_dict(FOLDER / f'{stem}.keys.json')
    given = {key: torch.from_numpy(value) for key, value in given.items()}
    # Exactly the keys and shapes of the public code.
    network.load_state_dict(given, strict=True, assign=True)
    image = torch.from_numpy(golden_weights.inputs(FOLDER / f'{stem}.keys.json'))
    check(stem, 'eval', golden_outputs(stem, network.eval(), image), EVAL_BOUND)
    if stem in EVALUATED:
        return

    network.train()
    if stem in DEEP:
        network, image = network.double(), image.double()
    bound = DEEP_BOUND if stem in DEEP else TRAIN_BOUND
    check(stem, 'train', golden_outputs(stem, network, image), bound)
    after = {k.removeprefix('after/'): v for k, v in stored(stem).items() if 'after/' in k}
    state = network.state_dict()
    for key, want in after.items():
        np.testing.assert_allclose(state[key], want, rtol=0, atol=2e-4 * want.std(), err_msg=key)
    assert after


def golden_outputs(stem, network, image):
    """The outputs that the golden set names, as ours are: NHWC numpy."""
    names = GOLDEN[stem][2].values()
    extra = {'aux': True} if any(name.startswith('aux') for name in names) else {}
    with torch.inference_mode():
        outputs = network(image, **extra)
        outputs['logits'] = peers.logits(outputs, image.shape[2:])
    kept = {name.split('.')[0] for name in names} | {'resize'}
    return {key: as_ours(value) for key, value in outputs.items() if key in kept}


def as_ours(value):
    if isinstance(value, dict):
        return {key: as_ours(x) for key, x in value.items()}
    return value if isinstance(value, str) else value.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize('name', NETWORKS)
def test_every_variable_of_our_model_has_its_place(name):
    """Our DSRL model of each network fills the peer's, every tensor once and in its shape."""
    model = models.create(name, num_classes=CLASSES, dsrl='full', **NETWORKS[name])
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes(model, (64, 64)))
    with torch.device('meta'):
        network = peers.create(name, CLASSES, **NETWORKS[name])
        theirs = dsrl.DSRL(network, mode='full')
    found = dsrl.state_dict(name, variables, num_classes=CLASSES, **NETWORKS[name])
    theirs.load_state_dict(found, strict=True, assign=True)
    for key, (channels, stride) in network.maps.items():
        assert channels > 0 and 64 % stride == 0, key


@pytest.mark.parametrize('term', SMALL)
def test_losses_equal_ours(term):
    ours, _, theirs, _ = both(term)
    assert set(ours) == set(theirs) == {term, 'mse', 'fa', 'total'}
    for name, value in ours.items():
        assert value > 0, name
        np.testing.assert_allclose(theirs[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize('term', SMALL)
def test_gradients_equal_ours(term):
    _, ours, _, theirs = both(term)
    assert set(theirs) < set(ours)  # ours also has the statistics
    for key, gradient in theirs.items():
        want = ours[key].numpy()
        error = np.linalg.norm(gradient - want)
        # A ReLU of either at its kink costs HRNet up to 2e-3 (against float64).
        bound = 1e-3 if term == 'ce' else 5e-3
        assert error <= bound * np.linalg.norm(want) + 1e-7, f'{key}: {error:.1e}'


@functools.cache
def both(term):
    """Terms and gradients of the whole objective: ours, theirs; gradients by the peer's keys."""
    name, options = SMALL[term]
    options = {**options, 'num_classes': CLASSES}
    model = models.create(name, dsrl='full', dropout=0.0, **options)
    variables, batch, config = filled(shapes(model, SIZE)), example(), configs.base()
    main = losses.heatmap_term(config, model.result_size) if term == 'heatmap' else None
    loss = losses.make_loss(config, main=main)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def ours(params, stats, batch):
        variables = {'params': params, 'batch_stats': stats}
        outputs, _ = model.apply(variables, batch['image'], train=True, mutable=['batch_stats'])
        terms = loss(outputs, batch, step=0, key=jax.random.key(0))
        return terms['total'], terms

    (_, terms), gradients = ours(variables['params'], variables['batch_stats'], batch)
    gradients = {'params': gradients, 'batch_stats': variables['batch_stats']}

    network = dsrl.DSRL(peers.create(name, dropout=0.0, **options))
    network.load_state_dict(dsrl.state_dict(name, variables, **options))
    image, view, label, mask = tensors(batch)
    if term == 'ce':
        found = dsrl.losses(network.train()(image), view, label, mask)
    else:
        found = dsrl.losses(network.train()(image), view, truth(batch), mask, main=drawn(network))
    found['total'].backward()
    theirs = {
        key: np.zeros(value.shape) if value.grad is None else value.grad.numpy()
        for key, value in network.named_parameters()
    }
    return (
        jax.device_get(terms),
        dsrl.state_dict(name, gradients, **options),
        {name: value.item() for name, value in found.items()},
        theirs,
    )


@pytest.mark.parametrize('stride', [2, 4])
def test_heatmaps_and_their_loss_equal_ours(stride):
    """Joints inside, outside and on both sides of where the square leaves the map; scores smaller
    than the heatmaps, as a head may leave them."""
    rng = np.random.default_rng(2)
    height, width = (n // stride for n in SIZE)
    joints = rng.uniform(-1, 2, (40, 17, 2)) * (SIZE[1], SIZE[0])
    edges = [-6.51, -6.5, -6.49, -7.5, -0.5, 0.5, 1.49, width + 4.49, width + 6.5, height + 5.5]
    joints[:10] = stride * np.array(edges)[:, None, None]
    joints[0, :, 1] = joints[1, :, 0] = 8.0  # off one side alone
    joints = joints.astype(np.float32)
    visible = rng.choice([0.0, 0.5, 1.0], (40, 17)).astype(np.float32)
    scores = rng.normal(size=(40, height // 2, width // 2, 17)).astype(np.float32)
    want, weight = heatmaps.encode(joints, visible, (height, width), stride, 2.0, 'standard')
    given = torch.from_numpy(joints), torch.from_numpy(visible)
    found, found_weight = peer_heatmaps.encode(*given, (height, width), stride, 2.0)
    np.testing.assert_array_equal(found_weight, weight)
    assert 0 < np.mean(weight == 0) < 0.9 and want.max() == 1
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), want, atol=1e-6)

    outputs = {'scores': scores, 'resize': models.Convention('half_pixel')}
    ours = losses.heatmap_mse(losses.heatmap_scores(outputs, (height, width)), want, weight)
    name, term = peer_heatmaps.heatmap_term((height, width), stride, 2.0)
    assert name == 'heatmap'
    np.testing.assert_allclose(term(as_theirs(scores), given, 'half_pixel'), ours, rtol=1e-5)


def test_terms_of_maps_off_the_grid_and_of_auxiliary_scores_equal_ours():
    rng, batch = np.random.default_rng(1), example()
    grid = {'scores': (8, 13), 'sr': (128, 192), 'seg_feature': (4, 6), 'sr_feature': (64, 96)}
    channels = {'scores': CLASSES, 'sr': 3}
    maps = {
        key: rng.normal(size=(2, *size, channels.get(key, 7))).astype(np.float32)
        for key, size in grid.items()
    }
    aux = rng.normal(size=(2, 16, 24, CLASSES)).astype(np.float32)
    convention = models.Convention('align_corners')
    aux = {'aux': {'a': aux, 'b': maps['scores']}, 'aux_resize': models.Convention('half_pixel')}
    outputs = {**maps, **aux, 'resize': convention}
    loss = losses.make_loss(configs.base(), aux_weight=0.4)
    ours = loss(outputs, batch, step=0, key=jax.random.key(0))

    _, *labels = tensors(batch)
    theirs = dsrl.losses(as_theirs(outputs), *labels, aux_weight=0.4)
    assert set(ours) == set(theirs) == {'ce', 'aux', 'mse', 'fa', 'total'}
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, rtol=1e-5, err_msg=name)


def test_inputs_equal_ours():
    target = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    color = configs.base().data
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (color.mean, color.std))
    found = dsrl.inputs(torch.from_numpy(target), mean, std)
    ours = resize.small_input(target, 2, color), resize.normalise(target, color)
    for theirs, want in zip(found, ours, strict=True):
        np.testing.assert_allclose(theirs.permute(0, 2, 3, 1), want, atol=1e-5)


def test_the_memory_format_changes_nothing_and_stays():
    network = dsrl.DSRL(peers.create('espnetv2', CLASSES, width=0.5)).eval()
    image, nhwc = tensors(example())[0], torch.channels_last
    with torch.inference_mode():
        plain = network(image.contiguous(), sr=True)
        last = network.to(memory_format=nhwc)(image.contiguous(memory_format=nhwc), sr=True)
    for key in ('scores', 'sr', 'seg_feature', 'sr_feature'):
        np.testing.assert_allclose(last[key], plain[key], atol=1e-4, err_msg=key)
        assert last[key].is_contiguous(memory_format=nhwc), key


def test_shuffles_move_channels_as_named():
    x = torch.arange(2 * 12 * 2 * 3.0).reshape(2, 12, 2, 3)
    for memory in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=memory)
        mixed = layers.interleave(given, 3)  # j of 3 groups, p of 4: 4 j + p -> 3 p + j
        assert torch.equal(mixed[:, 3 * 2 + 1], x[:, 4 * 1 + 2])
        large = layers.depth_to_space(given, 2)  # row 1, column 0, c 2 of 3
        assert torch.equal(large[:, 2, 1::2, 0::2], x[:, (2 * 1 + 0) * 3 + 2])


@pytest.mark.parametrize('name', ['dabnet', 'hrnet_w32'])
def test_a_training_step_is_one_graph(name):
    batch, small = example(), dict(SMALL.values()).get(name, {})
    network = dsrl.DSRL(peers.create(name, CLASSES, **small)).train()
    image, view, label, mask = tensors(batch)
    given, main = (truth(batch), drawn(network)) if small else (label, ('ce', dsrl.cross_entropy))

    @functools.partial(torch.compile, backend='eager', fullgraph=True)
    def total(image, view, given, mask):
        with torch.autocast('cpu', torch.bfloat16):
            return dsrl.losses(network(image), view, given, mask, main=main)['total']

    assert torch.isfinite(total(image, view, given, mask))


def test_an_unknown_peer_or_option_is_named():
    with pytest.raises(UserError, match='espnetv2'):
        peers.create('espnetv3', CLASSES)
    with pytest.raises(UserError, match='width'):
        peers.create('espnetv2', CLASSES, widht=1.0)
    with pytest.raises(UserError, match='torchseg'):
        peers.create('bisenet_resnet18', CLASSES, variant='coincheung')


def truth(batch):
    """joints, visible of an example as the peers want them."""
    return torch.from_numpy(batch['joints']), torch.from_numpy(batch['visible'])


def drawn(network):
    """The term of heatmaps for images of SIZE."""
    size = network.result_size(SIZE)
    return peer_heatmaps.heatmap_term(size, SIZE[0] // size[0], configs.base().pose.sigma)


def tensors(batch):
    """image, view, label, mask of an example as the peers want them."""
    image, view = (as_theirs(batch[key]) for key in ('image', 'view'))
    return image, view, torch.from_numpy(batch['label']).long(), torch.from_numpy(batch['mask'])


def as_theirs(value):
    if isinstance(value, dict):
        return {key: as_theirs(x) for key, x in value.items()}
    return value if isinstance(value, str) else torch.from_numpy(value.transpose(0, 3, 1, 2))


def shapes(model, size):
    image = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
    return jax.eval_shape(functools.partial(model.init, train=True), jax.random.key(0), image)


def filled(tree, seed=0):
    """Variables of these shapes: kernels of gain sqrt 2, everything else near its usual size."""
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        name = path[-1].key
        if name == 'kernel':
            array = rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape)
        elif name in ('bias', 'mean'):
            array = rng.normal(0, 0.1, leaf.shape)
        else:
            array = rng.uniform(0.5, 1.5, leaf.shape) * (0.25 if name == 'slope' else 1)
        return array.astype(np.float32)

    return jax.tree.map_with_path(value, tree)


def example(seed=0):
    """A batch with ignored labels and padding: image, view, label, mask; NHWC.

    And joints, some of them out of the image, visible or not.
    """
    rng = np.random.default_rng(seed)
    height, width = 2 * SIZE[0], 2 * SIZE[1]
    label = rng.integers(0, CLASSES, (2, height, width)).astype(np.uint8)
    label[:, :9] = 255
    mask = np.ones((2, height, width), bool)
    mask[0, -20:] = False
    return {
        'image': rng.normal(size=(2, *SIZE, 3)).astype(np.float32),
        'view': rng.normal(size=(2, height, width, 3)).astype(np.float32),
        'label': label,
        'mask': mask,
        'joints': (rng.random((2, CLASSES, 2)) * 1.2 * SIZE[::-1]).astype(np.float32),
        'visible': np.array([[1, 1, 0, 1, 0], [1, 0, 1, 1, 1]], np.float32),
    }

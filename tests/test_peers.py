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
from dsrl_jax.ops import resize

torch = pytest.importorskip('torch')
from third_party import peers  # noqa: E402
from third_party.peers import dsrl, layers  # noqa: E402

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


def test_losses_equal_ours():
    ours, _, theirs, _ = both()
    assert set(ours) == set(theirs) == {'ce', 'mse', 'fa', 'total'}
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, rtol=1e-4, err_msg=name)


def test_gradients_equal_ours():
    _, ours, _, theirs = both()
    assert set(theirs) < set(ours)  # ours also has the statistics
    for key, gradient in theirs.items():
        want = ours[key].numpy()
        error = np.linalg.norm(gradient - want)
        assert error <= 1e-3 * np.linalg.norm(want) + 1e-7, f'{key}: {error:.1e}'


@functools.cache
def both():
    """Terms and gradients of the whole objective: ours, theirs; gradients by the peer's keys."""
    options = {'width': 0.5, 'num_classes': CLASSES}
    model = models.create('espnetv2', dsrl='full', dropout=0.0, **options)
    variables, batch = filled(shapes(model, SIZE)), example()
    loss = losses.make_loss(configs.base())

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def ours(params, stats, batch):
        variables = {'params': params, 'batch_stats': stats}
        outputs, _ = model.apply(variables, batch['image'], train=True, mutable=['batch_stats'])
        terms = loss(outputs, batch, step=0, key=jax.random.key(0))
        return terms['total'], terms

    (_, terms), gradients = ours(variables['params'], variables['batch_stats'], batch)
    gradients = {'params': gradients, 'batch_stats': variables['batch_stats']}

    network = dsrl.DSRL(peers.create('espnetv2', dropout=0.0, **options))
    network.load_state_dict(dsrl.state_dict('espnetv2', variables, **options))
    image, *labels = tensors(batch)
    found = dsrl.losses(network.train()(image), *labels)
    found['total'].backward()
    theirs = {
        key: np.zeros(value.shape) if value.grad is None else value.grad.numpy()
        for key, value in network.named_parameters()
    }
    return (
        jax.device_get(terms),
        dsrl.state_dict('espnetv2', gradients, **options),
        {name: value.item() for name, value in found.items()},
        theirs,
    )


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
    outputs = {**maps, 'aux': {'a': aux, 'b': maps['scores']}, 'resize': convention}
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


def test_a_training_step_is_one_graph():
    network = dsrl.DSRL(peers.create('dabnet', CLASSES)).train()
    image, *labels = tensors(example())

    @functools.partial(torch.compile, backend='eager', fullgraph=True)
    def total(image, *labels):
        with torch.autocast('cpu', torch.bfloat16):
            return dsrl.losses(network(image), *labels)['total']

    assert torch.isfinite(total(image, *labels))


def test_an_unknown_peer_or_option_is_named():
    with pytest.raises(UserError, match='espnetv2'):
        peers.create('espnetv3', CLASSES)
    with pytest.raises(UserError, match='width'):
        peers.create('espnetv2', CLASSES, widht=1.0)
    with pytest.raises(UserError, match='torchseg'):
        peers.create('bisenet_resnet18', CLASSES, variant='coincheung')


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
    """A batch with ignored labels and padding: image, view, label, mask; NHWC."""
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
    }

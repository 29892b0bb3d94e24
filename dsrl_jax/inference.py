"""A trained network ready to use: from an exported directory, or straight from a workdir."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dsrl_jax import checkpoint, graphs, models, pose_inference
from dsrl_jax import config as configs
from dsrl_jax.data import geometry, images
from dsrl_jax.errors import UserError
from dsrl_jax.keypoints import Keypoints
from dsrl_jax.metrics import bicubic
from dsrl_jax.models.dsrl import inference_variables
from dsrl_jax.models.heads import logits
from dsrl_jax.ops import resize
from dsrl_jax.ops.scores import arg_max
from dsrl_jax.pose_inference import PoseResult
from dsrl_jax.report.overlay import colorize, overlay


@dataclasses.dataclass(frozen=True)
class Result:
    """What `Model.predict` found: `labels` [H,W] at the size of `image` [H,W,3] uint8."""

    labels: np.ndarray
    image: np.ndarray
    classes: list[str]
    palette: list[tuple[int, int, int]]

    def colors(self) -> np.ndarray:
        """The class map in colours, uint8 [H,W,3]."""
        return colorize(self.labels, self.palette)

    def overlay(self, alpha: float = 0.5) -> np.ndarray:
        """The coloured class map over the image, uint8 [H,W,3]."""
        return overlay(self.image, self.labels, self.palette, alpha)

    def shares(self) -> dict[str, float]:
        """Share of the image's pixels of every class that occurs, largest first."""
        count = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        found = {name: n / self.labels.size for name, n in zip(self.classes, count) if n}
        return dict(sorted(found.items(), key=lambda item: -item[1]))


class Model:
    """Network, weights and the names of its classes; `variables` hold what inference needs.

    `keypoints` are the joints of a network for poses, whose classes they are.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        variables: dict,
        classes: list[str],
        colors: list[tuple[int, int, int]],
        *,
        folded: bool = False,
        keypoints: Keypoints | None = None,
    ):
        self.config, self.classes, self.colors = config, list(classes), [tuple(c) for c in colors]
        self.folded, self.keypoints = folded, keypoints
        self.network = build_network(config, len(self.classes), folded=folded)
        self.variables = variables
        decide = RESULTS[self.network.task]
        self.label_map = jax.jit(decide(self.network, config, len(self.classes)))

    def predict(self, image, boxes=None, *, resize: bool = True) -> Result | PoseResult:
        """Classes of an image: uint8 [H,W,3], or the path of a picture, of any size.

        The image is the large view, brought to the size the model was made for as its
        evaluation does (resized, or shrunk only if too large and then padded) and shrunk by the
        shared filter to the network's input. `resize=False` keeps the image's own size and pads
        it to one the network can take. The labels come back at the image's own size.

        A model for poses gives the joints in `boxes` [[x, y, width, height], ...] in pixels of the
        image, or with None in the whole image as one box; see pose_inference.predict.
        """
        image = images.read_image(image) if isinstance(image, str | pathlib.Path) else image
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            found = f'{image.dtype} {list(image.shape)}'
            raise UserError('predict', found, 'uint8 [height, width, 3]', 'convert the image.')
        if self.network.task == 'pose':
            if not resize:
                expected = 'a network for segmentation: people are cut out of the image'
                raise UserError('resize=False', 'a network for pose', expected, 'leave it out.')
            return pose_inference.predict(self, image, boxes)
        if boxes is not None:
            expected = 'a network for pose, which looks for one person in each'
            raise UserError('boxes', 'a network for segmentation', expected, 'leave them out.')
        view = self._fit(image) if resize else self._pad(image)
        run = self._at_own_size if resize else self.label_map  # other sizes come and go
        found = np.asarray(run(self.variables, view['target'][None]))[0]
        labels = _region_to_image(found, view['region'], image.shape[:2])
        return Result(labels, image, self.classes, self.colors)

    @functools.cached_property
    def find_joints(self):
        """The compiled function of pose_inference.view_function."""
        return jax.jit(pose_inference.view_function(self.network, self.config, self.keypoints))

    @functools.cached_property
    def _at_own_size(self):
        """`label_map`, on a GPU as a graph for one image of the size the model was made for."""
        if jax.default_backend() != 'gpu':
            return self.label_map
        target = np.zeros((1, *configs.eval_size(self.config), 3), np.uint8)
        lowered = self.label_map.lower(self.variables, target)
        return graphs.compile_graph(lowered, (self.variables, target))[0]

    def _fit(self, image: np.ndarray) -> dict:
        """The large view of an image, at the size the model was made for."""
        size, data = configs.eval_size(self.config), self.config.data
        height, width = image.shape[:2]
        ratio = min(size[0] / height, size[1] / width)
        if data.eval_fit == 'resize' and ratio > 1:
            print(f'note: image {height}x{width} enlarged to {size[0]}x{size[1]}')
        if data.eval_fit == 'pad' and ratio < 1:
            smaller = (max(1, round(height * ratio)), max(1, round(width * ratio)))
            image = geometry.fit(image, smaller, 'resize', data.fill)['target']
        return geometry.fit(image, size, data.eval_fit, data.fill)

    def _pad(self, image: np.ndarray) -> dict:
        """The image at its own size, padded to one the network can take."""
        unit = self.network.multiple * self.config.scale
        size = tuple(-(-n // unit) * unit for n in image.shape[:2])
        return geometry.fit(image, size, 'pad', self.config.data.fill)


def super_resolve(model: Model, variables: dict, image: np.ndarray):
    """The SR branch's picture of an image, and bicubic enlargement of the same small input.

    uint8 [H,W,3] -> two uint8 [sH,sW,3], at the large view's size; `variables` hold all branches.
    """
    config = model.config
    target = model._fit(image)['target'][None]
    small = resize.small_input(target, config.scale, config.data)
    run = jax.jit(lambda v, x: model.network.apply(v, x, train=False, sr=True)['sr'])
    found = resize.denormalise(run(variables, small), resize.SR_COLOR)
    enlarged = resize.denormalise(bicubic(small, config.scale), config.data)
    return tuple(np.uint8(np.round(255 * np.asarray(x)[0])) for x in (found, enlarged))


def build_network(config, classes: int, *, folded: bool = False, conv_impl: str | None = None):
    """The Linen module that a configuration names, for a data set of that many classes."""
    model = config.model
    fields = ('width', 'output_stride', 'variant', 'dropout')
    options = {name: model[name] for name in fields if model[name] is not None}
    return models.create(
        model.net,
        num_classes=model.num_classes or classes,
        dsrl=model.dsrl,
        dtype=model.dtype,
        conv_impl=conv_impl or model.conv_impl,
        folded=folded,
        bn_group=model.bn_group,
        scale=config.scale,
        sssr=config.sssr.to_dict(),
        sisr=config.sisr.to_dict(),
        transform={
            'grid': config.fa.grid if config.fa.transform == 'grid' else 0,
            'always': config.fa.guide == 'teacher',
        },
        tap=model.tap,
        **options,
    )


def label_function(network, config, classes: int):
    """`labels(variables, target)`: uint8 large view [B,sH,sW,3] -> class map [B,sH,sW]."""
    competing = config.eval.classes or classes

    def labels(variables, target):
        image = resize.small_input(target, config.scale, config.data)
        outputs = network.apply(variables, image, train=False)
        found = arg_max(
            outputs['scores'],
            target.shape[1:3],
            convention=outputs['resize'],
            num_classes=competing,
        )
        # a background output that won is no class: void
        return jnp.where(found < classes, found, 255) if competing > classes else found

    return labels


def heatmap_function(network, config, joints: int):
    """`heatmaps(variables, target)`: uint8 large view [B,sH,sW,3] -> float32 [B,h,w,J]."""

    def maps(variables, target):
        image = resize.small_input(target, config.scale, config.data)
        outputs = network.apply(variables, image, train=False)
        return logits(outputs, network.result_size(image.shape[1:3]))

    return maps


# What a model decides, by the task of its network.
RESULTS = {'segmentation': label_function, 'pose': heatmap_function}


def _region_to_image(found: np.ndarray, region, size: tuple[int, int]) -> np.ndarray:
    """The part [top, left, height, width] of a class map, at an image's size, nearest."""
    rows = region[0] + (2 * np.arange(size[0]) + 1) * region[2] // (2 * size[0])
    columns = region[1] + (2 * np.arange(size[1]) + 1) * region[3] // (2 * size[1])
    return found[rows][:, columns]


def check_outputs(config, classes: int) -> None:
    """Raise UserError where eval.classes is neither 0 nor between the classes and the outputs."""
    found, outputs = config.eval.classes, config.model.num_classes or classes
    if found and not classes <= found <= outputs:
        expected = f'0, or {classes} classes to {outputs} outputs'
        raise UserError('config.eval.classes', str(found), expected, 'set it to 0.')


def input_size(config, size) -> tuple[int, int]:
    """Height and width of the small input of a large view."""
    return tuple(n // config.scale for n in size)


def check_size(network, config) -> None:
    """Raise UserError unless the network can take the training and evaluation sizes."""
    unit = network.multiple * config.scale
    legal = [config.scale * offset for offset in network.offsets]
    for field, size in (('size', config.data.size), ('eval_size', configs.eval_size(config))):
        if len(size) != 2 or any(n < unit or n % unit not in legal for n in size):
            found = 'x'.join(map(str, size))
            legal = 'x'.join(str(max(unit, round(n / unit) * unit)) for n in size)
            raise UserError(
                f'config.data.{field}',
                f'a large view of {found}',
                f'multiples of {unit} ({network.multiple} for {config.model.net}, times the '
                f'scale {config.scale})',
                f'use {legal}, for instance.',
            )


def load(directory: str | pathlib.Path) -> Model:
    """The model that `dsrl export` wrote to a directory."""
    directory = pathlib.Path(directory)
    saved = read_card(directory)
    config = ml_collections.ConfigDict(configs.base())
    configs.fill(config, saved['config'], str(directory / 'config.json'))
    network = build_network(config, len(saved['classes']), folded=saved['folded'])
    names = read_names(network, saved, directory / 'config.json')
    shapes = abstract_variables(network, config)
    variables = checkpoint.load_params(directory / 'params', inference_variables(shapes))
    return Model(config, variables, **names, folded=saved['folded'])


def from_workdir(workdir: str | pathlib.Path) -> tuple[Model, dict, int]:
    """The model of a training run, with the variables of all branches and the step they are of."""
    workdir = pathlib.Path(workdir)
    if not (workdir / 'config.json').is_file():
        remedy = 'give the --workdir of a `dsrl train` run.'
        raise UserError(workdir, 'no config.json', "a training run's directory", remedy)
    config = configs.load_json(workdir / 'config.json')
    dataset = read_named(workdir / 'dataset.json', {'classes', 'colors'})
    network = build_network(config, len(dataset['classes']))
    names = read_names(network, dataset, workdir / 'dataset.json')
    shapes = abstract_variables(network, config)
    if config.ema:
        weights, step = checkpoint.restore_weights(workdir, {'ema': shapes})
        variables = weights['ema']
    else:
        variables, step = checkpoint.restore_weights(workdir, shapes)
    return Model(config, inference_variables(variables), **names), variables, step


def names_of(thing) -> dict:
    """`classes`, `colors` and, of people, `keypoints` of a source or a model, to be saved."""
    names = {'classes': list(thing.classes), 'colors': [list(color) for color in thing.colors]}
    keypoints = getattr(thing, 'keypoints', None)
    return names | ({'keypoints': keypoints._asdict()} if keypoints else {})


def read_names(network, saved: dict, path: pathlib.Path) -> dict:
    """What `names_of` gave, out of a file; UserError where a network for poses lacks its joints."""
    names = {key: saved[key] for key in ('classes', 'colors')}
    if network.task == 'pose':
        names['keypoints'] = pose_inference.read_joints(saved, path)
    return names


def abstract_variables(network, config) -> dict:
    """Shapes of all variables of a network, without computing any."""
    small = input_size(config, configs.eval_size(config))
    image = jax.ShapeDtypeStruct((1, *small, 3), np.float32)
    init = functools.partial(network.init, train=False, sr=True)
    shapes = jax.eval_shape(init, jax.random.key(0), image)
    return {'params': shapes['params'], 'batch_stats': shapes.get('batch_stats', {})}


def read_card(directory: pathlib.Path) -> dict:
    """`config.json` of an exported model."""
    return read_named(directory / 'config.json', {'config', 'classes', 'colors', 'folded'})


def read_named(path: pathlib.Path, keys: set[str]) -> dict:
    """A JSON object that holds the keys, or a UserError that names what is missing or no such."""
    saved = read_json(path)
    missing = keys - set(saved) if isinstance(saved, dict) else keys
    wrong = [] if missing else [k for k in sorted(keys) if not _SOUND[k](saved[k])]
    if missing or wrong:
        found = 'no ' + ', '.join(sorted(missing)) if missing else f'unsound {", ".join(wrong)}'
        expected = 'a file of `dsrl train` or `dsrl export`'
        raise UserError(path, found, expected, 'check the directory, or write it again.')
    return saved


def read_json(path: pathlib.Path) -> dict:
    """A JSON file, or a UserError that names it."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:  # the last: brackets without end
        expected = 'a file written by `dsrl train` or `dsrl export`'
        raise UserError(path, str(error), expected, 'check the directory.') from None


def _is_color(value) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(part) is int and 0 <= part < 256 for part in value)
    )


# What the values of a file that we wrote look like.
_SOUND = {
    'classes': lambda x: isinstance(x, list) and x and all(isinstance(name, str) for name in x),
    'colors': lambda x: isinstance(x, list) and all(map(_is_color, x)),
    'config': lambda x: isinstance(x, dict),
    'folded': lambda x: isinstance(x, bool),
}

"""Configurations: defaults of every field, the `file:arg` form, overrides, validation, JSON."""

import ast
import importlib.util
import json
import math
import pathlib
from collections.abc import Iterable

import ml_collections
from ml_collections.config_dict import placeholder

from dsrl_jax.errors import UserError, nearest, one_of

DSRL_MODES = ('none', 'sssr', 'sssr+sisr', 'full')

# Closed sets of values. Names of networks, heads and data sets live in the tables that build them.
CHOICES = {
    'model.dsrl': DSRL_MODES,
    'model.dtype': ('float32', 'bfloat16'),
    'model.conv_impl': ('auto', 'lax', 'shift', 's2b'),
    'data.eval_fit': ('pad', 'resize'),
    'data.order': ('rgb', 'bgr'),
    'data.resident': ('auto', 'never', 'always'),
    'ce.labels': ('target', 'input'),
    'mse.reduction': ('mean', 'channel_sum'),
    'fa.sampling': ('pool8', 'grid8', 'random_pixels', 'random_rows', 'local', 'exact'),
    'fa.q': (1, 2),
    'fa.transform': ('map', 'grid'),
    'kd.input': ('small', 'view'),
    'sisr.activation': ('tanh', 'relu'),
    'optimizer.name': ('sgd', 'adam'),
    'optimizer.schedule': ('poly', 'step', 'constant'),
    'optimizer.decay': ('kernels', 'all'),
    'eval.resize': ('labels', 'logits'),
    'scale': (1, 2, 4),
}

# Numbers between two bounds, both legal.
RANGES = {
    'model.dropout': (0, 0.99),
    'ce.aux': (0, math.inf),
    'mse.weight': (0, math.inf),
    'fa.weight': (0, math.inf),
    'kd.pixel': (0, math.inf),
    'kd.pair': (0, math.inf),
    'eval.classes': (0, math.inf),
}


def base() -> ml_collections.ConfigDict:
    """Every field with its default; an experiment in `configs/` changes what differs."""
    section = ml_collections.ConfigDict
    config = section({'seed': 0, 'scale': 2})
    config.data = section(
        {
            'name': 'synthetic',
            'root': '',  # folder of the data set; the synthetic one needs none
            'train_split': 'train',  # 'train+val' joins splits
            'eval_split': 'val',
            'size': (128, 256),  # height and width of the large training crop
            'eval_size': placeholder(tuple),  # large view in evaluation; None: as `size`
            'eval_fit': 'pad',  # bring an image to eval_size by padding or by resizing
            'scale_range': (0.75, 1.5),  # random scale of the image before the crop, log-uniform
            'flip': True,
            'color': 0.0,  # strength of brightness, contrast and saturation jitter
            'fill': (124, 116, 104),  # colour of padded pixels: the mean, zero after normalisation
            'mean': (0.485, 0.456, 0.406),  # of 0..1, in the order of the network's channels
            'std': (0.229, 0.224, 0.225),
            'order': 'rgb',  # of the network's channels: rgb or bgr
            'batch_size': 16,
            'eval_batch_size': 8,
            'workers': 2,  # loader processes; 0 reads in this process
            'cache': True,  # keep decoded images in memory
            # Training images in device memory, views drawn there: auto is on an accelerator where
            # they fit. Not read by worker processes then.
            'resident': 'auto',
            'length': 0,  # synthetic: number of scenes; 0: the split's default
            'seed': 0,  # synthetic: which world is drawn
        }
    )
    config.model = section(
        {
            'net': 'espnetv2',
            'num_classes': 0,  # outputs of the network; 0: as many as the data set has classes
            'dsrl': 'full',
            'tap': 'features',  # which map of the network the affinity loss reads
            # Options of the network; None: its own default. One that it lacks is refused.
            'width': placeholder(float),  # of its channels
            'output_stride': placeholder(int),  # of its encoder: 8 or 16
            'variant': placeholder(str),  # which public code base it equals
            'dropout': placeholder(float),  # replaces the original's rates
            'dtype': 'float32',
            'conv_impl': 'auto',
            'init_from': '',  # weight file whose encoder starts the run
        }
    )
    config.sssr = section(
        {
            'head': 'official_deconv',
            'width': placeholder(int),  # deconv_features: its channels
        }
    )
    config.sisr = section({'activation': 'tanh', 'skip': True, 'trunk': 64})
    config.ce = section(
        {
            'weights': 'none',  # see losses.class_weights
            'aux': placeholder(float),  # weight of auxiliary classifiers; None: the original's
            'labels': 'target',  # supervise at the large size, or (paper's base) at the input's
        }
    )
    config.mse = section({'weight': 0.1, 'reduction': 'mean'})
    config.fa = section(
        {
            'weight': 1.0,
            'sampling': 'pool8',
            'grid': 8,  # cells of the affinity grid are input/grid
            # Where the 1x1 feature transform works: on the map itself (paper), or on the grid,
            # which costs next to nothing and averages before the ReLU instead of after.
            'transform': 'map',
            'q': 1,
            'eps': 1e-4,
            'stop_gradient_sr': False,
            'window': 5,  # local: edge of the window in cells
            'dilation': 1,  # local: distance of its cells
            'ramp': 0,  # steps over which the weight grows from 0
        }
    )
    config.kd = section(
        {
            'teacher': '',  # directory of `dsrl export` whose network guides the run; '': none
            'input': 'small',  # what it sees: the student's small input, or the large view
            'pixel': 10.0,  # weight of the divergence of class distributions
            'pair': 0.5,  # weight of the difference of similarities between nodes
            'pair_pool': 0.5,  # share of the map's height and width that a node covers
        }
    )
    config.optimizer = section(
        {
            'name': 'sgd',
            'lr': 0.01,
            'momentum': 0.9,
            'weight_decay': 5e-4,
            'decay': 'kernels',  # what is decayed: kernels alone, or (paper) all parameters
            'schedule': 'poly',
            'power': 0.9,
            'milestones': (),  # step schedule: fractions of the run after which lr is a tenth
            'warmup': 0,  # steps of linear warm-up
            'clip_norm': 0.0,  # 0: gradients are not clipped
            'lr_groups': (),  # ((regex of a parameter path, factor on lr), ...)
        }
    )
    config.ema = 0.0  # decay of the averaged weights that are evaluated; 0: none
    config.steps = 0  # length of the run: steps, or epochs where steps is 0
    config.epochs = 0.0
    # Training steps in one program where the data is resident; 0: 10, or 1 on a CPU.
    config.steps_per_dispatch = 0
    config.eval = section(
        {
            'every': 0,  # steps between evaluations; 0: at the end alone
            'resize': 'labels',  # how the map reaches the label's size: nearest, or bilinear scores
            # Arg-max over so many outputs; 0: over the data set's classes. One more that wins (a
            # background) is a miss of the true class.
            'classes': 0,
            'pictures': 4,  # overlays and worst images written as PNG
        }
    )
    config.checkpoint = section({'every': 0, 'keep': 2})  # every 0: ten times a run
    config.log = section({'every': 20})
    return config


def parse_arg(arg: str, **spec):
    """The string after `file.py:` as a ConfigDict, e.g. 'net=espnetv2,dsrl=full,tiny'.

    `spec` gives the known names with their defaults, whose types convert the text; a bare name
    sets a boolean. Raises UserError for an unknown name or a value of another type.
    """
    result = ml_collections.ConfigDict(spec)
    for item in filter(None, (piece.strip() for piece in (arg or '').split(','))):
        name, _, text = item.partition('=')
        where = f'config argument {item!r}'
        if name not in spec:
            raise UserError(where, f'the name {name!r}', one_of(spec), nearest(name, spec))
        result[name] = _convert(where, text if '=' in item else 'True', spec[name])
    return result


def load(spec: str, overrides: Iterable[tuple[str, str]] = ()) -> ml_collections.ConfigDict:
    """The locked configuration of 'file.py:arg' (or a shipped name, or a saved .json)."""
    name, _, arg = spec.partition(':')
    path = find(name)
    if path.suffix == '.json':
        config = load_json(path)
    else:
        module_spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
        module = importlib.util.module_from_spec(module_spec)
        try:
            module_spec.loader.exec_module(module)
            config = module.get_config(arg)
        except UserError:
            raise
        except Exception as error:  # a mistake in somebody's Python may raise anything
            found = f'{type(error).__name__}: {error}'
            remedy = 'correct the file; --debug shows the traceback.'
            raise UserError(path, found, 'get_config(arg) that returns one', remedy) from error
    config.lock()
    for dotted, text in overrides:
        override(config, dotted, text)
    check_choices(config)
    return config


def find(name: str) -> pathlib.Path:
    """The file of a configuration: a path, or the name of one that ships with the package."""
    path = pathlib.Path(name)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in _shipped_folder().glob('*.py')}
    stem = path.stem
    if stem in shipped and (path.parent == pathlib.Path() or path.parent.name == 'configs'):
        return shipped[stem]
    remedy = nearest(stem, shipped)
    raise UserError(f'--config={name}', 'no such file', 'a file, or ' + one_of(shipped), remedy)


def override(config: ml_collections.ConfigDict, dotted: str, text: str) -> None:
    """Set one field from the command line: 'optimizer.lr', '0.02'."""
    where, node = f'--config.{dotted}', config
    *parents, leaf = dotted.split('.')
    for key in (*parents, leaf):
        if not isinstance(node, ml_collections.ConfigDict) or key not in node:
            known = node.keys() if isinstance(node, ml_collections.ConfigDict) else ()
            raise UserError(where, f'the key {key!r}', one_of(known), nearest(key, known))
        if key is not leaf:
            node = node[key]
    if isinstance(node[leaf], ml_collections.ConfigDict):
        raise UserError(where, 'a section', 'a field in it', f'use {where}.FIELD=VALUE.')
    node[leaf] = _convert(where, text, node[leaf], node.get_type(leaf))


def check_choices(config: ml_collections.ConfigDict) -> None:
    """Raise UserError for a field whose value is outside its closed set."""
    for dotted, known in CHOICES.items():
        value = get(config, dotted)
        if value not in known:
            raise UserError(f'config.{dotted}', repr(value), one_of(known), nearest(value, known))
    for dotted, (low, high) in RANGES.items():
        value = get(config, dotted)
        if value is not None and not low <= value <= high:
            expected = f'at least {low:g}' + ('' if high == math.inf else f' and at most {high:g}')
            raise UserError(f'config.{dotted}', repr(value), expected, 'correct the value.')


def get(config: ml_collections.ConfigDict, dotted: str):
    """The field at a dotted path."""
    for key in dotted.split('.'):
        config = config[key]
    return config


def save_json(config: ml_collections.ConfigDict, path: str | pathlib.Path) -> None:
    """Write the configuration as JSON."""
    pathlib.Path(path).write_text(json.dumps(to_dict(config), indent=2) + '\n')


def to_dict(config: ml_collections.ConfigDict) -> dict:
    """The configuration as plain nested dicts of JSON values (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict()))


def load_json(path: str | pathlib.Path) -> ml_collections.ConfigDict:
    """A saved configuration; fields it lacks take their defaults, unknown ones are refused."""
    path = pathlib.Path(path)
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(path, str(error), 'a saved configuration', 'give the right file.') from None
    config = base()
    config.lock()
    fill(config, saved, str(path))
    return config


def parse_size(text: str, where: str = '--size') -> tuple[int, int]:
    """(height, width) of 'HEIGHTxWIDTH'."""
    height, _, width = text.partition('x')
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise UserError(where, repr(text), 'HEIGHTxWIDTH', 'write it like 512x1024.')
    return int(height), int(width)


def total_steps(config: ml_collections.ConfigDict, images: int) -> int:
    """Length of the run in steps, from `steps` or from `epochs` over that many images."""
    if bool(config.steps) == bool(config.epochs):
        found = f'steps={config.steps}, epochs={config.epochs}'
        raise UserError('config', found, 'exactly one of them above 0', 'set the other to 0.')
    return config.steps or max(1, round(config.epochs * images / config.data.batch_size))


def eval_size(config: ml_collections.ConfigDict) -> tuple[int, int]:
    """Height and width of the large view in evaluation."""
    return tuple(config.data.eval_size or config.data.size)


def fill(config, saved: dict, where: str) -> None:
    """Set the fields of `config` from saved nested dicts; UserError for what does not fit."""
    if not isinstance(saved, dict):
        raise UserError(where, repr(saved), 'a JSON object', 'give a saved configuration.')
    for key, value in saved.items():
        if key not in config:
            raise UserError(where, f'the key {key!r}', one_of(config.keys()), nearest(key, config))
        if isinstance(config[key], ml_collections.ConfigDict):
            fill(config[key], value, where)
        else:
            try:
                config[key] = _tuples(value)
            except TypeError:
                expected = f'a value of type {type(config[key]).__name__}'
                raise UserError(where, f'{key}={value!r}', expected, 'correct it.') from None


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _convert(where: str, text: str, old, wanted: type | None = None):
    """The text as a value of the old value's type; of `wanted` where that is None."""
    wanted = wanted or type(old)
    if wanted is str:
        return None if old is None and text == 'None' else text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {'true': True, 'false': False}.get(text.lower(), text)
    if wanted is float and type(value) is int:
        value = float(value)
    if isinstance(value, list):
        value = tuple(value)
    if type(value) is not wanted and not (old is None and value is None):
        examples = {tuple: '(384,480)', float: '0.5', int: '8'}
        example = examples[wanted] if old is None else repr(old)
        expected = f'a value of type {wanted.__name__}'
        raise UserError(where, repr(text), expected, f'write it like {example}.')
    return value


def _shipped_folder() -> pathlib.Path:
    here = pathlib.Path(__file__).resolve().parent
    return here / 'configs' if (here / 'configs').is_dir() else here.parent / 'configs'

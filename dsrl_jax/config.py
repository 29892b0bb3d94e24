"""Configurations: the `file:arg` form, overrides, validation, JSON; `base` has the defaults."""

import ast
import importlib.util
import json
import math
import pathlib
from collections.abc import Iterable

import ml_collections

from dsrl_jax.defaults import CHOICES, DSRL_MODES, RANGES, base, heatmap_sigma
from dsrl_jax.errors import UserError, nearest, one_of

__all__ = ['CHOICES', 'DSRL_MODES', 'base', 'heatmap_sigma']


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
    _check_numbers('eval.scales', config.eval.scales, 'factors above 0, like (0.5, 1.0)')
    if config.eval.window:
        _check_numbers(
            'eval.window', config.eval.window, 'height and width, like (512, 1024)', (int,), 2
        )


def get(config: ml_collections.ConfigDict, dotted: str):
    """The field at a dotted path."""
    for key in dotted.split('.'):
        config = config[key]
    return config


def compare(saved, now, keys, defaults=None) -> None:
    """UserError at the first difference of two configs (dicts or JSON text) in `keys`.

    A dotted key stands for all below it: 'model', 'data.batch_size'. `defaults`: of fields that
    `saved` is too old to have.
    """
    old, new = (_flat(_plain(config)) for config in (saved, now))
    old = _flat(_plain(defaults or {})) | old
    for name in {**old, **new}:
        inside = any(f'{name}.'.startswith(f'{key}.') for key in keys)
        if inside and (name not in old or name not in new or old[name] != new[name]):
            before, after = (json.dumps(d[name]) if name in d else 'nothing' for d in (old, new))
            remedy = 'give the old value, or another --workdir.'
            raise UserError(f'config {name}', after, f'{before}, as in the checkpoint', remedy)


def to_dict(config: ml_collections.ConfigDict) -> dict:
    """The configuration as plain nested dicts of JSON values (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict()))


def load_json(path: str | pathlib.Path) -> ml_collections.ConfigDict:
    """A saved configuration; fields it lacks take their defaults, unknown ones are refused."""
    path = pathlib.Path(path)
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
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


def _check_numbers(dotted, values, expected, kinds=(int, float), length=None):
    sound = all(type(value) in kinds and 0 < value < math.inf for value in values)
    if not sound or len(values) != (length or max(1, len(values))):
        raise UserError(f'config.{dotted}', repr(tuple(values)), expected, 'correct the value.')


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


def _flat(value, name=''):
    """{'a.b': 1} for {'a': {'b': 1}}."""
    if not isinstance(value, dict):
        return {name: value}
    dot = name and f'{name}.'
    return {k: v for part in value for k, v in _flat(value[part], f'{dot}{part}').items()}


def _plain(config):
    """A config given as dict or JSON text, as JSON gives it back: no tuples."""
    return json.loads(config if isinstance(config, str) else json.dumps(config))

"""Runs the rows of the paper's tables on the data at hand and writes ours beside the paper's.

Every row is a training run in OUTPUT/runs; the tables and Figure 1 share them, and a command that
was stopped goes on where it was.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp

from dsrl_jax import config as configs
from dsrl_jax import costs, data, experiment, inference, models, paper_figures, tasks
from dsrl_jax.errors import UserError, lookup, one_of
from dsrl_jax.models import hrnet
from dsrl_jax.models.dsrl import inference_variables
from dsrl_jax.paper_tables import TABLES, Row, Table
from dsrl_jax.report import paper

# What --tiny trains in the place of HRNet-W32: the same layers, few and narrow.
TinyHRNet = functools.partial(hrnet.Small, width=8)


def task_of(name: str) -> str:
    """What a table or figure of the paper is of: 'pose' for table5 and figure9."""
    if name in TABLES:
        return TABLES[name].task
    return paper_figures.TASKS.get(name, 'segmentation')


def check(name: str, config, split: str) -> None:
    """Raise UserError unless the data and the network of `config` are for the task of `name`."""
    wanted, source = task_of(name), data.build(config.data, split)
    if tasks.of(source) is not tasks.TASKS[wanted]:
        raise UserError(
            'config.data.name',
            f'{config.data.name}, which is not for {wanted}',
            f'a data set for {wanted}, as {name} is',
            'choose another data set, or another table or figure.',
        )
    tasks.check_network(inference.build_network(config, 2), source, config)


def check_net(name: str, net: str | None) -> None:
    """Raise UserError for a network that no row of a table of several has."""
    table = TABLES[_table_of(name)]
    nets = dict.fromkeys(row.count.net for row in table.rows)
    if net and not table.net and net not in nets:
        remedy = 'leave it out: every row has its own.'
        raise UserError('--net', f'{net!r} with {name}', one_of(nets), remedy)


def run(name: str, config, output, tiny: bool = False, splits=('val',)) -> pathlib.Path:
    """Train and score the rows of `name` (table1 ... table5, figure1); the path of what it wrote.

    The table is written anew after every row. `splits` are scored once a row is trained, the first
    of them draws its curve: no other split is read.
    `tiny`: two rows of ESPNetv2 are trained (of poses the three of one size), the others are built
    and counted.
    """
    output = pathlib.Path(output)
    table = _table_of(name)
    rows = lookup(TABLES, table, 'dsrl reproduce').rows
    check(table, config, splits[0])
    record = describe(table, config, tiny, splits)
    path = paper.write(record, output)
    for row, line in zip(rows, record['rows'], strict=True):
        if line['why']:
            continue
        planned = plan(row, TABLES[table], config)
        planned.data.eval_split = splits[0]
        result = experiment.run(planned, output / 'runs' / folder_name(planned), splits)
        if result is None:  # told to stop: the next call goes on
            return path
        line['ours'] |= kept(result, splits, record['task'])
        path = paper.write(record, output)
    return paper.plot_cost(record, output / 'figure1.png') if name == 'figure1' else path


def _table_of(name):
    """The table that a table or figure is made of."""
    return 'table2' if name == 'figure1' else name


def pair(config, output, split: str = 'val') -> dict[str, pathlib.Path] | None:
    """Train the configuration's network plain and with DSRL: {name: workdir}, for the figures.

    Both learn full-size labels; their curves are of `split`. None where a run was told to stop.
    """
    folders = {}
    for name, mode in (('plain network', 'none'), ('DSRL', 'full')):
        planned = _copy(config)
        planned.model.dsrl, planned.ce.labels = mode, 'target'
        planned.data.eval_split = split
        _set_sigma(planned, config)
        folders[name] = pathlib.Path(output) / 'runs' / folder_name(planned)
        if experiment.run(planned, folders[name], ()) is None:
            return None
    return folders


def describe(name: str, config, tiny: bool, splits) -> dict:
    """The record of a table before any run: what report.paper.write takes."""
    table = TABLES[name]
    classes = len(data.build(config.data, splits[0]).classes)
    return {
        'name': name,
        'title': table.title,
        'task': table.task,
        'measures': list(table.measures),
        'splits': list(splits),
        'data': config.data.name,
        'notes': _NOTES[table.task](config, tiny),
        'rows': [_line(row, table, config, classes, tiny) for row in table.rows],
    }


def plan(row: Row, table: Table, config):
    """The configuration that runs a row on the data of `config`, unlocked.

    The configuration's own input stands for the table's input `unit`, its network for that of a
    table of one. A smaller input is a smaller view of the whole image, a larger one has the view
    itself for its input (scale 1). Everything else (lengths, optimiser, head) is the
    configuration's.
    """
    planned = _copy(config)
    net = config.model.net if table.net else row.count.net
    options = {'width': None, 'variant': None, 'output_stride': None, **row.count.options}
    if net == config.model.net:  # its width is the user's choice
        options['width'] = config.model.width
    planned.model.update({**options, 'net': net, 'dsrl': row.dsrl})
    planned.ce.labels = row.labels
    # Along each axis: of poses, 160x128 is not of the shape of 256x192.
    ratios = [mine / its for mine, its in zip(row.input, table.unit)]
    if ratios[0] > 1:
        planned.scale = 1
    multiple = planned.scale * inference.build_network(planned, 2).multiple
    before = planned.data.size
    planned.data.size = tuple(_legal(n, min(r, 1), multiple) for n, r in zip(before, ratios))
    if ratios[0] < 1:
        planned.data.eval_size, planned.data.eval_fit = None, 'resize'
        zoom = planned.data.size[1] / before[1]  # the same field of view
        planned.data.scale_range = tuple(zoom * n for n in planned.data.scale_range)
    elif planned.data.eval_size:
        planned.data.eval_size = tuple(_legal(n, 1, multiple) for n in planned.data.eval_size)
    _set_sigma(planned, config)
    return planned


def folder_name(config) -> str:
    """A name for a run, by what the rows differ in."""
    model = config.model
    options = [model[name] for name in ('variant', 'width', 'output_stride') if model[name]]
    size = 'x'.join(map(str, inference.input_size(config, config.data.size)))
    net = model.net.replace(':', '.')
    return '-'.join(map(str, (net, *options, model.dsrl, config.ce.labels, size)))


def kept(result: dict, splits, task: str = 'segmentation') -> dict:
    """What a table keeps of an experiment's result: mIoU, of poses all that was scored."""
    facts = ('images_per_second', 'minutes', 'steps', 'seed', 'commit', 'device', 'date')
    scores = {split: result['scores'][split] for split in splits}
    if task == 'segmentation':
        scores = {split: found['miou'] for split, found in scores.items()}
    return {'scores': scores, **{name: result[name] for name in facts}}


def _line(row, table, config, classes, tiny):
    planned = plan(row, table, config)
    size = inference.input_size(planned, configs.eval_size(planned))
    printed = {'input': list(row.input), 'scores': dict(row.scores), 'gflops': row.gflops}
    return {
        'title': row.title,
        'network': row.network,
        'dsrl': row.dsrl,
        'input': list(row.input),
        'paper': None if row.ours_alone else printed | _printed_macs(row),
        'ours': {'input': list(size), **_our_macs(planned, classes, size)},
        'why': _why_not(row, table, tiny),
    }


def _why_not(row, table, tiny):
    """Why a row is not run, or ''."""
    if row.times != 1:
        return 'tests at several scales are not here'
    few = table.task == 'pose' or (
        row.count.net == 'espnetv2' and row.dsrl in ('none', 'full') and not row.ours_alone
    )
    if tiny and not (few and row.input == table.unit):
        return 'built and counted only (--tiny)'
    return ''


def _printed_macs(row):
    """Multiply-adds of the paper's row, with the authors' head where it has DSRL."""
    options, head = tuple(row.count.options.items()), (('head', 'official_deconv'),)
    found = _macs(row.count.net, row.count.classes, options, head, 2, row.input)
    # That head reads the scores of the plain network, so what is not the head is that network.
    spent = found['head_macs'] if row.dsrl != 'none' else 0
    total = found['macs'] - found['head_macs'] + spent
    return {'macs': row.times * total, 'head_macs': row.times * spent}


def _our_macs(config, classes, size):
    model = config.model
    names = ('width', 'output_stride', 'variant')
    options = tuple((name, model[name]) for name in names if model[name] is not None)
    sssr = None if model.dsrl == 'none' else tuple(config.sssr.to_dict().items())
    return _macs(model.net, model.num_classes or classes, options, sssr, config.scale, size)


@functools.cache
def _macs(net, classes, options, sssr, scale, size):
    """Multiply-adds of a prediction at `size`; `sssr` None: the plain network.

    Rows share networks and sizes, and every mode with SSSR predicts alike.
    """
    network, variables = _network(net, classes, options, sssr, scale)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    found = costs.operations_by_branch(costs.forward(network), variables, image)
    head = found['sssr'].macs if 'sssr' in found else 0
    return {'macs': sum(part.macs for part in found.values()), 'head_macs': head}


@functools.cache
def _network(net, classes, options, sssr, scale):
    mode = 'none' if sssr is None else 'sssr'
    built = {'dsrl': mode, 'sssr': dict(sssr or ()), 'scale': scale, 'conv_impl': 'lax'}
    network = models.create(net, num_classes=classes, **built, **dict(options))
    legal = 8 * network.multiple  # the shapes of weights do not depend on the size
    return network, inference_variables(costs.variable_shapes(network, (legal, legal)))


def _legal(n, ratio, multiple):
    """The nearest legal length of a smaller view; a view of the same size may only grow."""
    steps = round(n * ratio / multiple) if ratio < 1 else -(-n // multiple)
    return max(1, steps) * multiple


def _set_sigma(planned, config):
    """The sigma of heatmaps of another size: as far from the rule as the configuration's is."""
    rules = []
    for one in (planned, config):
        network = inference.build_network(one, 2)
        if tasks.of(network) is not tasks.pose:
            return
        rows = network.result_size(inference.input_size(one, one.data.size))[0]
        rules.append(configs.heatmap_sigma(rows))
    planned.pose.sigma = config.pose.sigma * rules[0] / rules[1]


def _copy(config):
    copy = config.copy_and_resolve_references()
    copy.unlock()
    return copy


_TINY = '--tiny: two steps of training, proof of the path alone.'
_ONE_SEED = (
    'one seed; other data, other lengths and no ImageNet weights unless model.init_from names '
    'them, so only differences between our own rows mean anything, and those of one seed little.'
)


def _notes(config, tiny):
    notes = [
        "The paper's GFLOPs leave its head out and mix conventions (`dsrl flops --paper`); true "
        'multiply-adds are counted on the network that comes nearest, with the head '
        'official_deconv and the outputs the paper has.',
        f'Ours: data {config.data.name}, head {config.sssr.head}, {_ONE_SEED}',
        'base: labels of the input\'s size, as in the paper; "labels of full size" is the same '
        'network on the labels that DSRL learns from: what DSRL has to beat.',
    ]
    return notes + ([_TINY] if tiny else [])


def _pose_notes(config, tiny):
    (net,), own = {row.count.net for row in TABLES['table5'].rows}, config.model.net
    network = own if own == net else f'{own} in the place of {net}'
    notes = [
        "The paper's GFLOPs are 2^30 multiply-adds of the network without the head; ours count "
        'the head too. Its rows are counted with the head official_deconv.',
        f'Ours: {network}, data {config.data.name}, head {config.sssr.head}, {_ONE_SEED}',
        f'Every row is trained once, its joints encoded {config.pose.encode}; the same heatmaps '
        "are read by all decodings. HRNet's own is quarter.",
        'base: heatmaps of a quarter of the input. "+ SSSR" is ours alone: the head without SISR '
        'branch and affinity loss, heatmaps of half of the input. What DSRL gives beyond it is '
        'theirs.',
        "The paper's base is HRNet's own figure, on a detector's boxes of 56.4 AP (pose.boxes); "
        'its authors have 76.5 for 256x192 on ground-truth boxes. DarkPose prints what its '
        'encoding and decoding alone give: 74.4 to 75.6 for 256x192, 66.9 to 70.7 for 128x96.',
    ]
    return notes + ([_TINY] if tiny else [])


_NOTES = {'segmentation': _notes, 'pose': _pose_notes}

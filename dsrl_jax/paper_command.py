"""`dsrl reproduce table1 ... figure9, photographs`: what the paper shows, on the data at hand."""

import pathlib

from dsrl_jax import config as configs
from dsrl_jax import inference, paper_figures, paper_runs, photographs
from dsrl_jax.errors import lookup
from dsrl_jax.paper_figures import FIGURES
from dsrl_jax.paper_tables import TABLES
from dsrl_jax.report import paper

WHAT = (*TABLES, 'figure1', *FIGURES, 'photographs')
# By task; the first is the default.
DATASETS = {'segmentation': ('camvid', 'synthetic'), 'pose': ('coco',)}
_NETS = {'segmentation': 'espnetv2', 'pose': 'hrnet_w32'}
# --tiny: the arguments of the configuration, the network where none is asked for, the data.
_TINY = {
    'segmentation': ('synthetic', 'espnetv2', ()),
    'pose': (
        'coco',
        'dsrl_jax.paper_runs:TinyHRNet',
        (('data.name', 'stick_figures'), ('data.length', '8')),
    ),
}


def run(args) -> dict | None:
    """Train what a table, a figure or the SR branch's photographs need, and write it.

    The object for the last line of stdout; None where a run of a figure was told to stop.
    """
    if args.what == 'photographs':
        model, variables, _ = inference.from_workdir(args.workdir)
        rows = photographs.photographs(model, variables, args.root)
        print(paper.photograph_table(rows))
        return {'sets': rows}
    config = configuration(args)
    folder = pathlib.Path(args.output) if args.output else pathlib.Path(args.workdir) / 'report'
    if args.what in (*TABLES, 'figure1'):
        paper_runs.check_net(args.what, args.net)
        path = paper_runs.run(args.what, config, args.workdir, args.tiny, (args.split,))
    else:
        paper_runs.check(args.what, config, args.split)
        runs = paper_runs.pair(config, args.workdir, args.split)
        if runs is None:
            return None
        path = paper_figures.figure(args.what, runs, config, folder, args.split)
    print(f'written to {path}')
    return {'written': str(path)}


def configuration(args):
    """The configuration of every row, unlocked: --config, else of data set and network."""
    task = paper_runs.task_of(args.what)
    if args.config:
        spec, data = args.config, ()
    elif args.tiny:
        name, net, data = _TINY[task]
        spec = f'{name}:net={args.net or net},tiny=true'
    else:
        known = DATASETS[task]
        name, data = lookup(dict(zip(known, known)), args.dataset or known[0], '--dataset'), ()
        spec = f'{name}:net={args.net or _NETS[task]}'
    config = configs.load(spec, [*data, *args.overrides]).copy_and_resolve_references()
    config.unlock()
    config.data.root = args.root or config.data.root
    return config

"""`dsrl flops`: parameters and multiply-adds of a network, with and without its head.

`--paper` sets the GFLOPs the paper prints beside our counts instead.
"""

import argparse
import json

from dsrl_jax import costs, paper_costs
from dsrl_jax.config import parse_size
from dsrl_jax.errors import UserError
from dsrl_jax.models import heads

_TITLES = {
    'network': 'network',
    'sssr': 'SSSR head',
    'inference': 'inference: network + head',
    'sisr': 'SISR branch',
    'transform': 'feature transform',
    'training': 'training forward: all',
}
_PARTS = ('macs', 'conv2d', 'transposed', 'biases')
_OPTIONS = ('width', 'variant', 'output_stride')
_COUNTED = ('size', 'num_classes', 'dsrl', 'head', *_OPTIONS)  # what --paper leaves no choice of


def flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `dsrl flops`."""
    parser.add_argument('--net', help='name of a network')
    parser.add_argument('--size', help='height and width of the input: 512x1024')
    parser.add_argument('--num_classes', type=int, help='default: 20')
    parser.add_argument('--dsrl', help='none, sssr, sssr+sisr or full; default: the plain network')
    parser.add_argument('--head', help=f'SSSR head: {", ".join(heads.HEADS)}')
    parser.add_argument('--width', type=float, help='width of the network, where it has one')
    parser.add_argument('--variant', help='whose definition, where a network has several')
    parser.add_argument('--output_stride', type=int, help='of the encoder, where it has a choice')
    parser.add_argument(
        '--paper', action='store_true', help="the paper's GFLOPs, of all networks or of --net"
    )


def main(args) -> int:
    """Run `dsrl flops`; the last line of stdout is one JSON object."""
    given = {name: value for name in _COUNTED if (value := getattr(args, name)) is not None}
    if args.paper:
        if given:
            found = ', '.join(f'--{name}' for name in given)
            raise UserError('--paper', found, 'at most --net beside it', 'leave the others out.')
        paper(args.net)
        return 0
    if args.net is None or args.size is None:
        missing = ' and '.join(f'--{n}' for n in ('net', 'size') if getattr(args, n) is None)
        remedy = 'give both, or --paper for the figures of the paper.'
        raise UserError('command line', f'no {missing}', '--net=NAME --size=HxW', remedy)
    if given.get('num_classes', 1) < 1:
        found = str(given['num_classes'])
        raise UserError('--num_classes', found, 'at least 1', 'leave it out for 20.')
    options = {name: given[name] for name in _OPTIONS if name in given}
    size, classes = parse_size(args.size), given.get('num_classes', 20)
    run(args.net, size, classes, args.dsrl, args.head, options)
    return 0


def run(net: str, size, num_classes: int = 20, dsrl=None, head=None, options=None) -> dict:
    """Print the table of `report`, then the report as one JSON line, and return it."""
    found = costs.report(
        net, size, num_classes=num_classes, dsrl=dsrl, head=head, **(options or {})
    )
    print(
        ', '.join([net, *(f'{name} {value}' for name, value in (options or {}).items())]),
        f'{num_classes} classes, input {size[0]}x{size[1]}',
        f'dsrl {dsrl or "none"}, head {found["head"] or "none"}',
        sep=', ',
    )
    titles = ('params', 'M MACs', '= Conv2d', '+ transp.', 'M biases', 'G 2xMACs')
    print(' ' * 26 + ''.join(f'{title:>12}' for title in titles))
    for part, title in _TITLES.items():
        if part in found['params']:
            millions = ''.join(f'{found[kind][part] / 1e6:12.2f}' for kind in _PARTS)
            double = 2 * found['macs'][part] / 1e9
            print(f'{title:26}{found["params"][part]:12,}{millions}{double:12.3f}')
    if found['xla_flops'] is not None:
        giga = found['xla_flops'] / 1e9
        print(f"XLA's own count for inference, resizing and norms in it: {giga:.3f} GFLOP")
    print(
        "The paper's GFLOPs leave its head out and mix several conventions: "
        '`dsrl flops --paper` goes through them row by row.'
    )
    print(json.dumps(found), flush=True)
    return found


def paper(net: str | None = None) -> list[dict]:
    """Print the rows of `paper_costs.compare`, then all as one JSON line, and return them."""
    rows = paper_costs.compare(net)
    print('Tab. Network                      Input        Paper        Ours  Ratio   Verdict')
    for row in rows:
        height, width = row['input']
        size = f'{height}x{width}'
        words = row['convention'] + (f' ({row["note"]})' if row['note'] else '')
        lines = [(row['network'], row['ours'], row['ratio'], row['verdict'], words)]
        if row['head'] is not None:
            ours = row['ours'] + row['head']
            words = f'{row["head"]:.4f} of it the head, in the same unit'
            lines += [(f'{row["network"]} + DSRL', ours, row['paper'] / ours, 'with head', words)]
        for network, ours, ratio, verdict, words in lines:
            print(
                f'{row["table"]:<5}{network:<29}{size:<10}{row["paper"]:8.2f}{ours:12.3f}'
                f'  {ratio:.3f}   {verdict:<16}{words}'
            )
    verdicts = [row['verdict'] for row in rows]
    found = ', '.join(f'{verdicts.count(name)} {name}' for name in paper_costs.VERDICTS)
    print(
        f'{len(rows)} figures in GFLOPs: {found}. Ratio = paper / ours. No figure of the paper '
        'holds the super-resolution head; [20] is Liu et al., CVPR 2019.'
    )
    print(json.dumps({'rows': rows}), flush=True)
    return rows

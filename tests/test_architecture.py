"""Who may import whom, and other rules of the house, held over the syntax tree of every module."""

import ast
import collections
import functools
import graphlib
import pathlib
import re
import subprocess
import sys

import pytest

from dsrl_jax import cli

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'dsrl_jax'
VERBS = {module for module, _ in cli.VERBS.values()}

# Module or package -> all it may import of ours. A package may import its own modules.
MAY_IMPORT = {
    'errors': (),
    'defaults': (),
    'config': ('defaults', 'errors'),
    'ops': (),
    'models': ('ops', 'errors'),
    'foreign': (),
    'data': ('errors', 'config', 'keypoints', 'report'),
    'report': ('errors',),
    'losses': ('ops', 'errors'),
    'metrics': ('ops', 'errors'),
    'boundary': ('errors',),
    'keypoints': ('errors',),
    'oks': (),
    'pose_scores': ('keypoints', 'oks', 'errors'),
    'pose_inference': (
        *('config', 'data', 'keypoints', 'losses', 'oks', 'ops', 'pose_scores', 'report', 'errors'),
    ),
    'statistics': ('metrics', 'errors'),
    'cityscapes_scores': ('data', 'errors'),
    'submission': ('cityscapes_scores', 'data', 'report', 'errors'),
    'multi_scale': ('config', 'data', 'ops', 'parallel', 'step', 'errors'),
    'gallery': ('boundary', 'parallel', 'report'),
    'person_gallery': ('report',),
    'detailed': ('boundary', 'metrics', 'data'),
    'optimizer': ('errors',),
    'state': (),
    'costs': ('models', 'errors'),
    'timing': (),
    'turns': (),
    'graphs': (),
    'roofline': ('timing',),
    'circumstances': ('roofline',),
    'profiling': ('errors',),
    'tasks': (
        *('accumulation', 'cityscapes_scores', 'config', 'data', 'detailed', 'gallery'),
        *('inference', 'keypoints', 'losses', 'metrics', 'multi_scale', 'ops', 'parallel'),
        *('person_gallery', 'pose_inference', 'pose_scores', 'resident', 'step', 'errors'),
    ),
    'workload': (
        *('config', 'graphs', 'inference', 'models', 'optimizer', 'ops'),
        *('state', 'step', 'tasks', 'errors'),
    ),
    'peer': ('turns', 'workload', 'errors'),
    'rungs': ('config', 'costs', 'inference', 'errors'),
    'contrasts': ('experiment', 'rungs', 'statistics', 'errors'),
    'effect': ('config', 'contrasts', 'ladder', 'report', 'rungs', 'statistics', 'errors'),
    'paper_costs': ('costs', 'models', 'errors'),
    'paper_tables': ('paper_costs',),
    'paper_runs': (
        *('config', 'costs', 'data', 'experiment', 'inference', 'models', 'paper_figures'),
        *('paper_tables', 'report', 'tasks', 'errors'),
    ),
    'paper_command': (
        *('config', 'inference', 'paper_figures', 'paper_runs', 'paper_tables', 'photographs'),
        *('report', 'errors'),
    ),
    'paper_figures': (
        *('config', 'data', 'inference', 'metrics', 'ops', 'report', 'tasks', 'errors'),
    ),
    'photographs': ('data', 'metrics', 'step', 'errors'),
    'distillation': ('inference', 'ops', 'errors'),
    'pretrained': ('models', 'foreign', 'weight_files', 'errors'),
    'weight_files': ('errors',),
    'diagnostics': ('losses', 'parallel', 'step', 'errors'),
    'accumulation': ('errors',),
    'step': ('accumulation', 'losses', 'metrics', 'models', 'optimizer', 'state', 'ops'),
    'parallel': ('errors',),
    'workdir': ('errors',),
    'records': ('errors',),
    'initial': ('config', 'inference', 'parallel', 'pretrained', 'state', 'foreign', 'errors'),
    'resident': ('parallel', 'data', 'ops', 'errors'),
    'broken_files': (),
    'checkpoint': ('broken_files', 'errors'),
    'logger': ('records', 'errors'),
    'cli': ('errors',),
}

# Library -> the modules or packages that may import it.
OWNERS = {
    'orbax': ('checkpoint',),
    'grain': ('data',),
    'tensorflow_datasets': ('data',),
    'array_record': ('data',),
    'tensorflow': (),
    'torch': ('weight_files',),
    'safetensors': ('weight_files',),
    'tensorboardX': ('logger',),
    'matplotlib': ('report',),
    'pycocotools': ('pose_scores',),
    'argparse': ('cli', *(verb.removeprefix('dsrl_jax.') for verb in VERBS)),
}
LAZY = ('torch', 'safetensors', 'matplotlib', 'tensorflow', 'tensorflow_datasets', 'pycocotools')
ON_DEVICES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax', 'clu')
PICKLES = ('pickle', 'cloudpickle', 'dill', 'joblib', 'shelve', 'marshal')

Import = collections.namedtuple('Import', 'module target line lazy')


@functools.cache
def trees() -> dict[str, ast.Module]:
    """{'dsrl_jax.data.camvid': syntax tree, ...}."""
    found = {}
    for path in sorted(PACKAGE.rglob('*.py')):
        parts = path.relative_to(ROOT).with_suffix('').parts
        parts = parts[:-1] if parts[-1] == '__init__' else parts
        found['.'.join(parts)] = ast.parse(path.read_text(encoding='utf-8'))
    return found


@functools.cache
def imports() -> tuple[Import, ...]:
    """Every import of every module; ours by the module's whole name, `lazy` inside a function."""
    found = []
    for module, tree in trees().items():
        lazy = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f'{module}:{node.lineno}: a relative import; name the module'
                inner = [f'{node.module}.{alias.name}' for alias in node.names]
                ours = node.module.split('.')[0] == 'dsrl_jax'
                names = [n if n in trees() else node.module for n in inner] if ours else inner
            else:
                continue
            found += [Import(module, name, node.lineno, id(node) in lazy) for name in names]
    return tuple(found)


def within(name: str, places) -> bool:
    """Is the module one of the places (without 'dsrl_jax.'), or inside one?"""
    return any(f'{name}.'.startswith(f'dsrl_jax.{place}.') for place in places)


def shown(broken) -> str:
    return '; '.join(f'{i.module}:{i.line} imports {i.target}' for i in broken)


@pytest.mark.parametrize('place', MAY_IMPORT)
def test_a_module_imports_only_what_lies_below_it(place):
    mine = [i for i in imports() if within(i.module, [place])]
    assert any(within(name, [place]) for name in trees()), f'no module {place}: mend the table'
    ours = [i for i in mine if i.target.startswith('dsrl_jax.')]  # the bare name is the version
    bad = [i for i in ours if not within(i.target, (place, *MAY_IMPORT[place]))]
    assert not bad, shown(bad)


def test_ops_need_nothing_but_jax_and_numpy():
    bad = [
        i
        for i in imports()
        if within(i.module, ['ops'])
        and i.target.split('.')[0] not in {*sys.stdlib_module_names, 'jax', 'numpy', 'dsrl_jax'}
    ]
    assert not bad, shown(bad)


def test_nothing_that_data_reaches_opens_a_device():
    reached = {name for name in trees() if within(name, ['data'])}
    while (
        more := {i.target for i in imports() if i.module in reached and i.target in trees()}
        - reached
    ):
        reached |= more
    bad = [i for i in imports() if i.module in reached and i.target.split('.')[0] in ON_DEVICES]
    assert not bad, shown(bad)


def test_verbs_stand_beside_each_other():
    allowed = {('dsrl_jax.train', 'dsrl_jax.evaluate')}
    # What runs whole experiments stands above the verbs.
    above = {'experiment': ('train', 'evaluate'), 'ladder': ('export',), 'reproduce': ('train',)}
    allowed |= {(f'dsrl_jax.{a}', f'dsrl_jax.{b}') for a, verbs in above.items() for b in verbs}
    bad = [
        i
        for i in imports()
        if i.target in VERBS and i.module != 'dsrl_jax' and (i.module, i.target) not in allowed
    ]
    assert not bad, shown(bad)
    assert set(trees()) >= VERBS, f'no module {VERBS - set(trees())}'


def test_nothing_imports_the_command_line():
    bad = [i for i in imports() if i.target == 'dsrl_jax.cli']
    assert not bad, shown(bad)


@pytest.mark.parametrize('library', OWNERS)
def test_a_library_has_its_place(library):
    users = [i for i in imports() if i.target.split('.')[0] == library]
    bad = [i for i in users if not within(i.module, OWNERS[library])]
    assert not bad, shown(bad)
    eager = [i for i in users if library in LAZY and not i.lazy]
    assert not eager, 'not inside a function: ' + shown(eager)


def test_only_parallel_builds_meshes():
    makers = ('make_mesh', 'Mesh', 'create_device_mesh', 'AxisType')
    bad = []
    for module, tree in trees().items():
        for node in ast.walk(tree):
            name = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ''
            if name.split('.')[-1] in makers and name != 'parallel.make_mesh':
                bad.append(f'{module}:{node.lineno} uses {name}')
            if isinstance(node, ast.alias) and node.name.split('.')[-1] in makers:
                bad.append(f'{module}:{node.lineno} imports {node.name}')
    bad = [use for use in bad if not use.startswith('dsrl_jax.parallel:')]
    assert not bad, '; '.join(bad)


def test_imports_have_no_circle():
    graph = {name: set() for name in trees()}
    for i in imports():
        if not i.lazy and i.target in graph and i.target != i.module:
            graph[i.module].add(i.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        raise AssertionError('imports in a circle: ' + ' <- '.join(error.args[1])) from None


def test_the_package_and_its_command_line_import_nothing_heavy():
    modules = 'dsrl_jax, dsrl_jax.cli, dsrl_jax.config, dsrl_jax.data'
    heavy = [*ON_DEVICES, *(name for name in OWNERS if name != 'argparse')]
    code = f'import sys, {modules}; print([m for m in {heavy!r} if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == '[]', f'import of {modules} loads {done.stdout}{done.stderr}'


def test_nothing_is_unpickled():
    users = [i for i in imports() if i.target.split('.')[0] in PICKLES]
    assert not users, shown(users)
    bad = []
    for module, tree in trees().items():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            given = {k.arg: getattr(k.value, 'value', None) for k in call.keywords}
            if given.get('allow_pickle', False) is not False:
                bad.append(f'{module}:{call.lineno} allows pickles')
            if ast.unparse(call.func) == 'torch.load' and given.get('weights_only') is not True:
                bad.append(f'{module}:{call.lineno} calls torch.load without weights_only=True')
    assert not bad, '; '.join(bad)


@functools.cache
def files(*suffixes) -> tuple[pathlib.Path, ...]:
    """The files of the repository with one of the endings; build products and runs left out."""
    folders = [ROOT / name for name in ('dsrl_jax', 'configs', 'tests', 'third_party', 'launch')]
    found = [path for folder in folders for path in folder.rglob('*')]
    found += [*ROOT.glob('*'), *ROOT.glob('.ci/*')]
    return tuple(
        p for p in found if p.is_file() and p.suffix in suffixes and '__pycache__' not in p.parts
    )


def test_a_file_is_one_room():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in files('.py')
        if (lines := len(path.read_text(encoding='utf-8').splitlines())) > 350
    }
    assert not long, f'over 350 lines: {long}'


def test_no_file_is_named_after_nothing():
    vague = {'utils', 'util', 'helpers', 'helper', 'common', 'misc', 'manager'}
    names = [path.relative_to(ROOT) for path in files('.py')]
    bad = [str(name) for name in names if vague & set(name.with_suffix('').parts)]
    assert not bad, f'say what is in them: {bad}'


def test_no_file_names_a_place_on_one_machine():
    place = re.compile(r'(?<![\w.{}$)])/(?:work|home|root|Users|mnt|scratch)/[\w.]')
    bad = []
    for path in files('.py', '.sh', '.md', '.toml', '.yaml', '.yml', '.json', '.sbatch', ''):
        for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
            if place.search(line):
                bad.append(f'{path.relative_to(ROOT)}:{number} {line.strip()[:80]}')
    assert not bad, '\n'.join(bad)

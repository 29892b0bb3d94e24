"""Weight names of torchvision's ResNets (BSD-3-Clause)."""

from dsrl_jax.foreign.table import Table

# Of one ResNet relative to its own root; other code bases hang the same names under a prefix.
TORCHVISION = (
    (r'\bstem\.conv$', 'conv1'),
    (r'\bstem\.norm$', 'bn1'),
    # the three convolutions of a deep stem
    (r'\bstem0\.conv$', 'conv1'),
    (r'\bstem0\.norm$', 'bn1'),
    (r'\bstem1\.conv$', 'conv2'),
    (r'\bstem1\.norm$', 'bn2'),
    (r'\bstem2\.conv$', 'conv3'),
    (r'\bstem2\.norm$', 'bn3'),
    (r'_block(\d+)\.', r'.\1.'),
    (r'\bdownsample\.conv$', 'downsample.0'),
    (r'\bdownsample\.norm$', 'downsample.1'),
    (r'\bconv(\d)\.conv$', r'conv\1'),
    (r'\bconv(\d)\.norm$', r'bn\1'),
)
TABLES = {
    '': Table(
        renames=((r'^encoder\.', ''), *TORCHVISION, (r'^classifier$', 'fc')), classes='fc.weight'
    )
}

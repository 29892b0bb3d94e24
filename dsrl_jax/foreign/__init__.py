"""How other projects name the weights of our networks: one module of plain data per source.

RENAMES  (regex, replacement) pairs, applied in order to a torch key without its last part;
         the result is our path, dots for slashes.  weight, bias, running_mean and running_var
         then follow from what the layer at that path holds.
CLASSES  the torch key whose first axis counts the classes.
ENCODER  the sub-tree of our parameters that a pretrained backbone fills.
"""

from dsrl_jax.foreign import espnetv2

TABLES = {
    'espnetv2': espnetv2,
    'espnetv2_classifier': espnetv2,
}

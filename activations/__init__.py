"""Learnable activations, exact at initialisation: usable with torch alone.

act = activations.build("hermite:degree=3", channels=3072, input_std=0.55)
activations.gains(act)          # (E[F^2], E[F'^2]) under N(0, 0.55^2): 0.55^2 and 1
"""

from activations.activation import Activation, gains
from activations.fit import FitReport, fit
from activations.groups import is_coefficient, parameter_groups, tensor_names
from activations.parametric import Parametric
from activations.registry import build, names
from activations.sharing import repeated_names, share
from activations.swap import swap
from activations.swapped import load_swapped

__version__ = "0.1.0"
__all__ = [
    "Activation",
    "FitReport",
    "Parametric",
    "build",
    "fit",
    "gains",
    "is_coefficient",
    "load_swapped",
    "names",
    "parameter_groups",
    "repeated_names",
    "share",
    "swap",
    "tensor_names",
]

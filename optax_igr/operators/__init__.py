"""A weight as the linear operator by which its layer acts: a matrix, a stack of matrices or a convolution.

Every norm of a layer is a norm of its operator. A convolution with a 3 × 3 kernel of ones has the spectral norm 9,
but its kernel, flattened to a matrix, has the norm 3. The penalties, the projections and the diagnostics stand on this
room.
"""

from optax_igr.operators.conv_operator import ConvOperator, conv_operator
from optax_igr.operators.conv_transpose_operator import (
    ConvTransposeOperator,
    conv_transpose_operator,
)
from optax_igr.operators.leaves import Operator
from optax_igr.operators.matrix_operator import MatrixOperator, matrix_operator
from optax_igr.operators.norms import (
    frobenius_norm,
    schatten_norm,
    spectral_norm,
    spectral_norm_bound,
)
from optax_igr.operators.stacked_operator import StackedOperator, stacked_operator

__all__ = [
    "ConvOperator",
    "ConvTransposeOperator",
    "MatrixOperator",
    "Operator",
    "StackedOperator",
    "conv_operator",
    "conv_transpose_operator",
    "frobenius_norm",
    "matrix_operator",
    "schatten_norm",
    "spectral_norm",
    "spectral_norm_bound",
    "stacked_operator",
]

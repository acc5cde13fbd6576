"""One step of each cell, forward and backward, on tiles of float32: read it beside ``reference.py``.

The names are the reference's. A tile holds some units of some sequences. ``d_u`` and ``d_c`` are tiles of the
update and the cell mask, scale included, and a gradient of x is called d_x. The caller computes the products with the
recurrent weights. So the forward functions take complete pre-activations, and the backward ones return their gradients.
"""

import triton
import triton.language as tl


@triton.jit
def phi(x, RELU: tl.constexpr):
    """The nonlinearity. A relu passes NaN on, as torch's does."""
    if RELU:
        return tl.where(x <= 0, 0.0, x)
    else:
        return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def phi_slope(y, RELU: tl.constexpr):
    """The derivative of the nonlinearity where its value is ``y``."""
    if RELU:
        return tl.where(y > 0, 1.0, 0.0)
    else:
        return 1 - y * y


@triton.jit
def lstm_forward(x_i, x_f, x_g, x_o, c, d_u, d_c, RELU: tl.constexpr):
    """Eq. 4 to 6, with the dropouts of Eq. 8 (cell) and 9 (update)."""
    i, f, g, o = tl.sigmoid(x_i), tl.sigmoid(x_f), phi(x_g, RELU), tl.sigmoid(x_o)
    c = d_c * (f * c + i * (d_u * g))
    h = o * phi(c, RELU)
    return i, f, g, o, h, c


@triton.jit
def lstm_backward(i, f, g, o, c_before, c, dh, dc, d_u, d_c, RELU: tl.constexpr):
    """The gradients of the four pre-activations and of the cell before the step."""
    y = phi(c, RELU)
    dc = d_c * (dc + dh * o * phi_slope(y, RELU))
    d_i = dc * (d_u * g) * i * (1 - i)
    d_f = dc * c_before * f * (1 - f)
    d_g = dc * (d_u * i) * phi_slope(g, RELU)
    d_o = dh * y * o * (1 - o)
    return d_i, d_f, d_g, d_o, dc * f


@triton.jit
def gru_state(h, z, n, d_u, d_c):
    """Eq. 13 with z for the paper's 1 - z, as in torch.nn.GRU; z and n are those of Eq. 11 and 12."""
    return d_c * (z * h + (1 - z) * (d_u * n))


@triton.jit
def gru_state_backward(h_before, z, n, dh, d_u, d_c, RELU: tl.constexpr):
    """The gradients of the pre-activations of z and n, and that of the state before through z * h."""
    dh = d_c * dh
    d_z = dh * (h_before - d_u * n) * z * (1 - z)
    d_n = dh * (1 - z) * d_u * phi_slope(n, RELU)
    return d_z, d_n, dh * z


@triton.jit
def gru_reset_backward(r, reset, d_reset):
    """The gradient of r's pre-activation. r multiplied ``reset``, and ``d_reset`` is the gradient of r * reset."""
    return d_reset * reset * r * (1 - r)

"""PyTorch's networks, given the same weights in float64, have the same outputs, states and gradients as ours."""

import numpy as np
import pytest

from rnnlm.model import CELLS, LanguageModel, Layer, ModelSettings, Workspace, initialize, mean_weights, recur

torch = pytest.importorskip("torch")

STEPS, STREAMS, HIDDEN, WORDS = 7, 3, 5, 11
KINDS = {
    "elman": lambda *sizes: torch.nn.RNN(*sizes, dtype=torch.float64),
    "relu": lambda *sizes: torch.nn.RNN(*sizes, nonlinearity="relu", dtype=torch.float64),
    "gru": lambda *sizes: torch.nn.GRU(*sizes, dtype=torch.float64),
    "lstm": lambda *sizes: torch.nn.LSTM(*sizes, dtype=torch.float64),
}


def close(found, expected, name=""):
    """Compare arrays, of one shape and to 1e-10."""
    assert found.shape == expected.shape, name
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10, err_msg=name)


def ours_of(cell, gradient, number, theirs):
    """Return X, W and b of a layer of ours, or their gradients, from the layer of PyTorch's that is the same."""
    parts = [getattr(theirs, f"{name}_l{number - 1}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    X, W, b, recalled = ((part.grad if gradient else part.detach()).numpy() for part in parts)
    other = 0 if gradient else recalled  # where biases are added up, each has the gradient of the sum
    if cell == "gru":  # theirs r, z, n, of which z is our u
        r, u, _ = np.split(b + other, 3)
        n, q = np.split(b, 3)[2], np.split(recalled, 3)[2]
        return np.concatenate([np.split(X, 3)[gate] for gate in (2, 0, 1)]), W, np.concatenate([n, r, u, q])
    if cell == "lstm":  # theirs i, f, g, o
        X, W, b = (np.concatenate([np.split(part, 4)[gate] for gate in (3, 0, 1, 2)]) for part in (X, W, b + other))
        return X, W, b
    return X, W, b + other


def in_full(gradient, shape):
    """Write a gradient's rows out."""
    full = np.zeros(shape)
    for rows, values in gradient:
        full[rows] = values
    return full


@pytest.mark.parametrize("embedding", [HIDDEN, 4], ids=["D=H", "D<H"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", KINDS)
def test_layers(cell, layers, embedding):
    """Outputs, states after the window, gradients of what comes in and of every parameter."""
    torch.manual_seed(1)
    theirs = KINDS[cell](embedding, HIDDEN, layers)
    rows, ds, before = (
        torch.randn(*size, dtype=torch.float64)
        for size in (
            (STEPS, STREAMS, embedding),
            (STEPS, STREAMS, HIDDEN),
            (layers, len(CELLS[cell].states), STREAMS, HIDDEN),
        )
    )
    rows.requires_grad_()
    outputs, after = theirs(rows, tuple(before.unbind(1)) if cell == "lstm" else before[:, 0])
    outputs.backward(ds)
    own = [Layer(*ours_of(cell, False, number, theirs)) for number in range(1, layers + 1)]
    keep = np.ones((STEPS, STREAMS), bool)
    (s, states), backward = recur(rows.detach().numpy(), keep, before.numpy(), own, CELLS[cell], None, Workspace())
    drows, gradients = backward(ds.numpy())
    close(s, outputs.detach().numpy(), "s")
    close(states, (torch.stack(after, 1) if cell == "lstm" else after[:, None]).detach().numpy(), "states")
    close(drows, rows.grad.numpy(), "rows")
    for number in range(1, layers + 1):
        for letter, expected in zip("XWb", ours_of(cell, True, number, theirs), strict=True):
            name = f"{letter}{number}"
            close(in_full(gradients.pop(name), expected.shape), expected, name)
    assert not gradients

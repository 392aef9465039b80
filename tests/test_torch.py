"""PyTorch's networks, given the same weights in float64, have the same outputs, states and gradients as ours."""

import numpy as np
import pytest

from conftest import in_full
from rnnlm.model import CELLS, LanguageModel, Layer, ModelSettings, Workspace, mean_weights, parameter_table, recur

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


def ours_of_all(cell, gradient, theirs):
    """Return those of all layers, by their names."""
    numbers = range(1, theirs.num_layers + 1)
    return {
        f"{letter}{number}": value
        for number in numbers
        for letter, value in zip("XWb", ours_of(cell, gradient, number, theirs), strict=True)
    }


def some(*size):
    """Draw float64 numbers."""
    return torch.randn(*size, dtype=torch.float64)


def read(cell, theirs, rows, before):
    """Let PyTorch's layers read, from states (L, M, B, H). Returns their outputs, and the states after."""
    outputs, after = theirs(rows, tuple(before.unbind(1)) if cell == "lstm" else before[:, 0])
    return outputs, (torch.stack(after, 1) if cell == "lstm" else after[:, None]).detach().numpy()


@pytest.mark.parametrize("embedding", [HIDDEN, 4], ids=["D=H", "D<H"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", KINDS)
def test_layers(cell, layers, embedding):
    """Outputs, states after the window, gradients of what comes in and of every parameter."""
    torch.manual_seed(1)
    theirs, rows = KINDS[cell](embedding, HIDDEN, layers), some(STEPS, STREAMS, embedding).requires_grad_()
    before, ds = some(layers, len(CELLS[cell].states), STREAMS, HIDDEN), some(STEPS, STREAMS, HIDDEN)
    outputs, after = read(cell, theirs, rows, before)
    outputs.backward(ds)
    own = [Layer(*ours_of(cell, False, number, theirs)) for number in range(1, layers + 1)]
    keep = np.ones((STEPS, STREAMS), bool)
    (s, states), backward = recur(rows.detach().numpy(), keep, before.numpy(), own, CELLS[cell], None, Workspace())
    drows, gradients = backward(ds.numpy())
    close(s, outputs.detach().numpy(), "s")
    close(states, after, "states")
    close(drows, rows.grad.numpy(), "rows")
    compare(gradients, ours_of_all(cell, True, theirs))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", KINDS)
def test_losses(cell, layers, tied):
    """`cross_entropy` over all words, and the gradients of its mean; a tied table has one gradient."""
    torch.manual_seed(1)
    theirs, output = KINDS[cell](HIDDEN, HIDDEN, layers), torch.nn.Linear(HIDDEN, WORDS, dtype=torch.float64)
    table = output.weight if tied else some(WORDS, HIDDEN).requires_grad_()
    if cell in ("elman", "relu") and not tied:  # ours adds the word's row to z as it is
        theirs.weight_ih_l0.data = torch.eye(HIDDEN, dtype=torch.float64)
    text = torch.randint(WORDS, (STEPS + 1, STREAMS))
    before = some(layers, len(CELLS[cell].states), STREAMS, HIDDEN)
    outputs, after = read(cell, theirs, table[text[:-1]], before)
    expected = torch.nn.functional.cross_entropy(output(outputs).flatten(0, 1), text[1:].flatten(), reduction="none")
    expected.mean().backward()

    settings = ModelSettings(WORDS, HIDDEN, cell, carry_state=True, layers=layers, tied=tied)
    own = ours_of_all(cell, False, theirs) | {"V": output.weight.detach().numpy(), "c": output.bias.detach().numpy()}
    own_gradients = ours_of_all(cell, True, theirs) | {"V": output.weight.grad.numpy(), "c": output.bias.grad.numpy()}
    if not tied:
        own["U"], own_gradients["U"] = table.detach().numpy(), table.grad.numpy()
    names = parameter_table(settings)
    model = LanguageModel(settings, {name: own[name] for name in names})
    x, y = text[:-1].numpy(), text[1:].numpy()
    (losses, states), backward = model.losses(x, y, before.numpy(), Workspace())
    close(losses, expected.detach().numpy().reshape(y.shape), "losses")
    close(states, after, "states")
    compare(backward(mean_weights(y)), {name: own_gradients[name] for name in names})


def compare(gradients, expected):
    """Compare gradients by name: none may be missing, and none too many."""
    assert set(gradients) == set(expected)
    for name, value in expected.items():
        close(in_full(gradients[name], value), value, name)

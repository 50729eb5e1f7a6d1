"""Matrices with nearly orthonormal rows that do not look at the data: random signs, structured rows, and a bad twin."""

import torch
from scipy.fft import dct
from scipy.linalg import hadamard
from torch import Tensor

KINDS = ("rademacher", "sparse", "gaussian", "orthonormal", "hadamard", "dct", "coherent")


def sketch(kind: str, rows: int, columns: int, *, generator: torch.Generator, cosine: float = 0.9) -> Tensor:
    """Return a matrix `[rows, columns]` whose rows have (in the mean) unit length; ValueError for an unknown kind.

    "sparse" is Achlioptas' choice (0 with probability 2/3); "hadamard" and "dct" take random rows of those orthogonal
    matrices ("hadamard" needs a power of two); "coherent" has unit rows with inner products `cosine`.
    """
    if kind == "rademacher":
        values = 2.0 * torch.randint(2, (rows, columns), generator=generator) - 1
    elif kind == "sparse":
        die = torch.randint(6, (rows, columns), generator=generator)
        values = 3**0.5 * ((die == 0).double() - (die == 1).double())
    elif kind == "gaussian":
        values = torch.randn(rows, columns, generator=generator)
    elif kind in ("hadamard", "dct"):
        basis = hadamard(columns) if kind == "hadamard" else dct(torch.eye(columns).numpy(), norm="ortho", axis=0)
        chosen = torch.randperm(columns, generator=generator)[:rows]
        values = torch.as_tensor(basis)[chosen].double()
        values = values * (columns**0.5 if kind == "dct" else 1)
    elif kind in ("orthonormal", "coherent"):
        values = torch.linalg.qr(torch.randn(columns, rows, generator=generator, dtype=torch.float64))[0].T
        if kind == "coherent":
            gram = torch.full((rows, rows), cosine, dtype=torch.float64).fill_diagonal_(1)
            values = torch.linalg.cholesky(gram) @ values
        values = values * columns**0.5
    else:
        raise ValueError(f"no sketch called {kind!r}: choose one of {', '.join(KINDS)}")
    return (values / columns**0.5).to(torch.get_default_dtype())

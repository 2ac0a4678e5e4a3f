"""Small numerical pieces shared by the families: counter-based signs, eigenvectors, rotations.

Random signs come from a hash of counters in integer arithmetic, so they are the
same on every device and in every batch split.
"""

import torch
from torch import Tensor

State = dict[str, Tensor]

_MULTIPLIERS = (-7046029254386353131, -4658895280553007687, -7723592293110705685)


def hash_counters(seed: int, *counters: Tensor | int) -> Tensor:
    """Return one well-mixed int64 per broadcast element of ``counters``.

    Args:
        seed: Any Python integer.
        counters: int64 tensors that broadcast together, or integers.

    Returns:
        int64, the broadcast shape of ``counters``; equal on CPU and CUDA.

    Source:
        The finaliser of splitmix64 (Steele, Lea and Flood, 2014), applied once a counter.
    """
    state = torch.as_tensor(_wrap(seed * 2 + 1))
    for counter in counters:
        state = _mix(state + _MULTIPLIERS[0] * (torch.as_tensor(counter) + 1))
    return state


def sign_block(seed: int, rows: Tensor, width: int, *streams: int) -> Tensor:
    """Return independent -1 or +1, float32, shape ``(row, width)``; each row's depend on its number only.

    One hash gives 64 signs, so a probe over a large vocabulary stays cheap.

    Args:
        rows: Numbers of the rows, int64.
        streams: Numbers that tell blocks of one seed apart.
    """
    words = torch.arange(-(-width // 64), device=rows.device)
    hashed = hash_counters(seed, rows[:, None], *streams, words[None, :])
    bits = hashed.contiguous().view(torch.uint8).unsqueeze(-1)  # 8 bytes a word, little-endian
    masks = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=rows.device)
    flipped = (bits & masks).ne(0).view(len(rows), 64 * len(words))[:, :width]
    return 1.0 - 2.0 * flipped.to(torch.float32)


def symmetric_eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (descending, negatives clamped to 0) and eigenvectors (columns), float64.

    The sign of each vector is fixed (its largest entry is positive), so the same
    matrix gives the same vectors with every LAPACK.

    Args:
        matrix: Shape ``(feature, feature)``; only its symmetric part is used.
    """
    matrix = matrix.to(torch.float64)
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    if len(values) == 0:
        return values, vectors
    pivot = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values, vectors * torch.where(pivot < 0, -1.0, 1.0)


def is_half_on_gpu(tensor: Tensor) -> bool:
    """Return whether ``times_half`` is a faster product with ``tensor`` than one in float32."""
    # torch before 2.8 cannot multiply bfloat16 into float32.
    return (
        tensor.is_cuda
        and tensor.dtype == torch.bfloat16
        and "dtype" in torch.ops.aten.mm.overloads()
    )


def times_half(side: Tensor, matrix: Tensor) -> Tensor:
    """Return ``side @ matrix``, float32, for a bfloat16 ``side`` on a GPU.

    The matrix is a sum of two in bfloat16, so it is rounded to 16 bits and not to 8; products of
    bfloat16 numbers are exact in the float32 in which they are summed.

    Args:
        side: Shape ``(..., row)``.
        matrix: Shape ``(row, column)``.
    """
    matrix = matrix.float()
    high = matrix.bfloat16()
    both = torch.cat([high, (matrix - high).bfloat16()], dim=1)
    product = torch.mm(side.reshape(-1, side.shape[-1]), both, out_dtype=torch.float32)
    columns = matrix.shape[1]
    return (product[:, :columns] + product[:, columns:]).view(*side.shape[:-1], columns)


def random_orthogonal(size: int, seed: int) -> Tensor:
    """Return a Haar-distributed orthogonal matrix, shape ``(size, size)``, float64, made on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(size, size, generator=generator, dtype=torch.float64)
    basis, triangle = torch.linalg.qr(gaussian)
    orthogonal: Tensor = basis * torch.where(triangle.diagonal() < 0, -1.0, 1.0)
    return orthogonal


def numbered(state: State, name: str) -> list[Tensor]:
    """Return the entries ``name/0``, ``name/1``, ... of a state, in the order of their numbers.

    A state that was stored comes back in the order of its names, in which 10 is before 2.
    """
    found = {int(key.removeprefix(f"{name}/")): key for key in state if key.startswith(f"{name}/")}
    return [state[found[number]] for number in sorted(found)]


def add_states(a: State, b: State) -> State:
    """Return the sum of two states with the same keys; the merge of every additive state."""
    return {key: a[key] + b[key] for key in a}


def _mix(state: Tensor) -> Tensor:
    """Return the splitmix64 finaliser; int64 wraps, shifts are made logical by masks."""
    state = (state ^ ((state >> 30) & ((1 << 34) - 1))) * _MULTIPLIERS[1]
    state = (state ^ ((state >> 27) & ((1 << 37) - 1))) * _MULTIPLIERS[2]
    return state ^ ((state >> 31) & ((1 << 33) - 1))


def _wrap(value: int) -> int:
    """Return ``value`` as a signed 64-bit integer."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)

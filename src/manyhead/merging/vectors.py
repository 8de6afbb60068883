"""Task vectors: what fine-tuning added to a common base, as one flat vector with keys in sorted order.

Ilharco et al., 'Editing Models with Task Arithmetic', 2023, arXiv 2212.04089. A task vector is
`tau_t = theta_t - theta_0`; the merged model is `theta_0 + alpha * sum_t tau_t`.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from manyhead.errors import InputError

State = Mapping[str, Tensor]


def merged_keys(state: State, exclude: Sequence[str] = ()) -> list[str]:
    """Names of the floating-point tensors that merging touches, sorted.

    Args:
        state: a state dict.
        exclude: shell patterns of names left as they are in the base, such as 'head.*'.
    """
    return sorted(
        name
        for name, tensor in state.items()
        if tensor.is_floating_point() and not any(fnmatchcase(name, pattern) for pattern in exclude)
    )


def flatten(state: State, keys: Iterable[str]) -> Tensor:
    """Join the named tensors into one vector (P,), in the order of `keys`."""
    return torch.cat([state[key].reshape(-1) for key in keys])


def unflatten(vector: Tensor, like: State, keys: Iterable[str]) -> dict[str, Tensor]:
    """Cut a flat vector (P,) back into tensors of the shapes and dtypes of `like`."""
    parts, start = {}, 0
    for key in keys:
        stop = start + like[key].numel()
        parts[key] = vector[start:stop].reshape(like[key].shape).to(like[key].dtype)
        start = stop
    return parts


def task_vectors(base: State, models: Sequence[State], exclude: Sequence[str] = ()) -> Tensor:
    """Return `theta_t - theta_0` of every model, (tasks, P), keys in sorted order.

    Args:
        base: state dict of the pre-trained model.
        models: state dicts fine-tuned from it, same names and shapes.
        exclude: shell patterns of names to leave out.

    Raises:
        InputError: if there is no model, or one lacks a tensor of the base or has another shape.
    """
    if not models:
        raise InputError("merging needs at least one fine-tuned model, got none")
    keys = merged_keys(base, exclude)
    if not keys:
        raise InputError(f"no floating-point tensor is left to merge after excluding {list(exclude)}")
    for number, model in enumerate(models):
        for key in keys:
            if key not in model:
                raise InputError(f"model {number} lacks the tensor {key!r} of the base")
            if model[key].shape != base[key].shape:
                raise InputError(
                    f"tensor {key!r} is {tuple(model[key].shape)} in model {number} "
                    f"and {tuple(base[key].shape)} in the base"
                )
    start = flatten(base, keys)
    return torch.stack([flatten(model, keys) - start for model in models])


def total(rows: Sequence[Tensor] | Tensor) -> Tensor:
    """Add up task vectors one after the other, so that the result does not depend on how they are cut."""
    result = rows[0].clone()
    for row in rows[1:]:
        result += row
    return result


def apply(base: State, vector: Tensor, alpha: float = 1.0, exclude: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return the state dict `theta_0 + alpha * vector`; tensors that are not merged are the base's own.

    Args:
        base: state dict of the pre-trained model.
        vector: (P,) merged task vector over the sorted keys.
        alpha: scaling of the vector.
        exclude: the same patterns that the vector was made with.
    """
    keys = merged_keys(base, exclude)
    moved = unflatten(flatten(base, keys) + alpha * vector, base, keys)
    return {name: moved.get(name, tensor) for name, tensor in base.items()}

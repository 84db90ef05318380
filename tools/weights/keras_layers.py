"""Keras's variables -> the port's weights, by what their names say.

A name is a path to a layer and, last, what the layer calls the weight. The paths carry whatever counters their process had
reached ("time_distributed_27"), so that layers are told by their order and by the weights that they have.
"""

import re
from collections.abc import Iterable

from denet_torch.architecture import LAYERS, keras_name

from . import WeightsError

LEAVES = {"kernel" if leaf == "weight" else leaf for leaves in LAYERS.values() for leaf in leaves}
GRU = ["gru.forward_gru", "gru.backward_gru"]
ATTENTION_LAYERS = [layer for layer in LAYERS if layer.startswith("attention.")]


def leaf_of(name: str) -> str:
    """"time_distributed_8/layer_norm_1_scale:0" -> "scale" """
    return re.sub(r"^layer_norm(_\d+)?_", "", name.rsplit("/", 1)[-1].split(":")[0])


def in_order(name: str) -> list[tuple[str, int]]:
    """Key by which sorted names have their counters in the order of counting, one without a counter first."""
    parts = (re.fullmatch(r"(.*?)(?:[_-](\d{1,9}))?", part, re.DOTALL) for part in name.split("/"))
    return [(part[1], int(part[2] or 0)) for part in parts]


def assign(path, names: Iterable[str], what: str = "layers with weights") -> dict[str, str]:
    """{the port's weight: name of the variable} for `names` in the order of the network, the GRU's layers at any place.

    All of a DENet, all but its attention, or only that. Raises WeightsError, naming `path`, for anything else.
    """
    found: dict[str, dict[str, str]] = {}  # layer: {its name for a weight: the variable}
    for name in names:
        layer = found.setdefault(name.rpartition("/")[0], {})
        if leaf_of(name) in layer:
            raise WeightsError(f"{path}: {name} and {layer[leaf_of(name)]} are two weights of one layer and name")
        layer[leaf_of(name)] = name
    recurrent = [layer for layer, leaves in found.items() if "recurrent_kernel" in leaves]
    recurrent.sort(key=lambda layer: "backward" in layer)  # stable: where the names do not say so, the first is the forward one
    others = [layer for layer in found if layer not in recurrent]
    plain = [layer for layer in LAYERS if layer not in GRU]
    shorter = [layer for layer in plain if layer not in ATTENTION_LAYERS]
    wanted = {len(plain): plain, len(shorter): shorter, len(ATTENTION_LAYERS): ATTENTION_LAYERS}.get(len(others), [])
    if not wanted or len(recurrent) != (0 if wanted is ATTENTION_LAYERS else len(GRU)):
        nets = sum("filt_b1" in leaves for leaves in found.values())
        if nets > 1:
            raise WeightsError(f"{path}: holds {nets} DENets; expected one")
        expected = f"DENet has {len(shorter) + 2}, and {len(ATTENTION_LAYERS)} more where its attention is saved"
        raise WeightsError(f"{path}: has {len(found)} {what}; {expected}")
    # By kind: a model's counters go by the order in which its layers were made, which is not that of the network everywhere.
    result, made = {}, [*others, *recurrent]
    for mine in [*wanted, *GRU] if recurrent else wanted:
        expected = {leaf_of(keras_name(leaf)): leaf for leaf in LAYERS[mine]}
        layer = next((layer for layer in made if found[layer].keys() == expected.keys()), None)
        if layer is None:
            left = f"{made[0]} with {', '.join(found[made[0]])} is left"
            raise WeightsError(f"{path}: has no layer with {', '.join(expected)} for {mine}; {left}")
        made.remove(layer)
        result |= {f"{mine}.{leaf}": found[layer][kind] for kind, leaf in expected.items()}
    return result

"""The names of the blocks in the prefix index, made when somebody asks for them and then kept."""

from memserve_jax.core.block_names import next_name, root_name
from memserve_jax.mempool.index import PrefixNode


def name_of_node(node: PrefixNode) -> bytes:
    """Returns the name of the block of a node; of a root, that of its salt.

    Names what comes before it too: of several nodes ask for the deepest first. A node that has
    left the tree has its name only if it was asked for before.
    """
    unnamed: list[PrefixNode] = []
    above = node
    while above.parent is not None and above.value.name is None:
        unnamed.append(above)
        above = above.parent
    if above.value is None:  # pyright: ignore[reportUnnecessaryComparison]
        name = root_name(above.root_text)
    else:
        assert above.value.name is not None, "a node that has left the tree without a name"
        name = above.value.name
    if unnamed:
        for each, key in zip(reversed(unnamed), node.keys_after(above), strict=True):
            name = each.value.name = next_name(name, key)
    return name

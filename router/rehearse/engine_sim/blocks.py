"""The KV pool: blocks, references and prefix reuse, counted as vLLM counts them.

One block of the pool is reserved. A block that nobody holds is *free* even while it still caches a prefix.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """``num_blocks`` blocks, of which block 0 is never handed out."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))  # in order of eviction
        self._references = [0] * num_blocks
        self._hash_of: dict[int, int] = {}
        self._by_hash: dict[int, int] = {}

    @property
    def free(self) -> int:
        """Blocks that can be had now."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of the pool in use, 0 to 1: ``1 - free / (num_blocks - 1)``, vLLM's ``BlockPool.get_usage``."""
        return 1.0 - len(self._free) / (self.num_blocks - 1)

    def allocate(self, count: int) -> list[int] | None:
        """Blocks for one holder, the least recently used first; None, and nothing taken, if too few are free."""
        if count > len(self._free):
            return None
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
            stale = self._hash_of.pop(block, None)
            if stale is not None:
                del self._by_hash[stale]
        return blocks

    def cached(self, hashes: Iterable[int], *, at_most: int) -> list[int]:
        """The blocks of the longest cached prefix with these hashes, not yet held."""
        found: list[int] = []
        for wanted in hashes:
            if len(found) >= at_most or (block := self._by_hash.get(wanted)) is None:
                break
            found.append(block)
        return found

    def fits(self, cached: Sequence[int], fresh: int) -> bool:
        """Whether ``fresh`` blocks are left once these cached ones are held."""
        idle = sum(1 for block in cached if self._references[block] == 0)
        return fresh <= len(self._free) - idle

    def hold(self, blocks: Iterable[int]) -> None:
        """Take one more reference on cached blocks."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def remember(self, block: int, prefix_hash: int) -> None:
        """Note that a full block holds the KV of the prefix with this hash; the first block to do so is kept."""
        if prefix_hash not in self._by_hash and block not in self._hash_of:
            self._hash_of[block] = prefix_hash
            self._by_hash[prefix_hash] = block

    def release(self, blocks: Sequence[int]) -> None:
        """Give up one reference each; the end of a sequence is evicted before its beginning."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None

"""KV-cache arithmetic: one copy for measuring, deciding and planning."""


def free_tokens(*, usage: float, blocks: int, block_size: int, reserved_blocks: int) -> int:
    """Return the KV tokens a new request could take, rounded down.

    ``(1 - usage) x (blocks - reserved) x block_size``: vLLM keeps one null block back, and its usage is a share of
    the rest. Blocks that only hold cached prefixes count as free there. `usage` is 0..1 (clipped).
    """
    usable = max(0, blocks - reserved_blocks)
    # usage arrives as used/usable in floating point: the epsilon keeps a whole number of blocks whole
    free_blocks = int((1.0 - min(1.0, max(0.0, usage))) * usable + 1e-6)
    return free_blocks * block_size


def total_tokens(*, blocks: int, block_size: int, reserved_blocks: int) -> int:
    """Return the usable pool in tokens."""
    return max(0, blocks - reserved_blocks) * block_size


def need_tokens(*, prompt_tokens: int, output_tokens: int, block_size: int | None) -> int:
    """Return what a request will hold at its end, rounded up to whole blocks where the block size is known."""
    need = max(1, prompt_tokens) + max(0, output_tokens)
    if not block_size:
        return need
    return -(-need // block_size) * block_size


def to_256ths(free: int, total: int) -> int:
    """Return `free` in whole 256ths of `total`, rounded down: the resolution of a load report."""
    if total <= 0:
        return 0
    return min(256, max(0, free) * 256 // total)


def from_256ths(part: int, total: int) -> int:
    """Return the tokens that `part` 256ths of `total` stand for, rounded down."""
    return total * part // 256

"""The life of one exchange and the bytes of its answer, sans-io."""

"""Hard limits of the shard format: what a reader allocates or seeks for, whatever a file says."""

from __future__ import annotations

MAX_ROW_GROUPS = 4_096
MAX_GROUP_ROWS = 1 << 16
MAX_GROUP_IDS = (1 << 31) - 1
"""Ids of one level of one row group, and so of one sample."""
MAX_GROUP_BYTES = 1 << 28
"""Bytes of codes a writer puts into one row group."""
MAX_CHUNK_BYTES = (1 << 31) - 1
"""Bytes read at once: sizes and codes of a row group together with what lies between them, a rejects file, a list."""
MAX_FILE_BYTES = (1 << 63) - 1
MAX_FOOTER_BYTES = 1 << 26
MAX_LEVELS = 256
MAX_RANK = 3

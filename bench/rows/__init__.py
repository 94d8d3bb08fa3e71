"""The rows of the benchmark, grouped by what they measure; each module lists its own in ROWS."""

from rows import cold, index, memory, random_reads, small_files, start, takeovers, warm, workers

ALL = [*warm.ROWS, *small_files.ROWS, *cold.ROWS, *random_reads.ROWS, *memory.ROWS, *start.ROWS,
       *takeovers.ROWS, *workers.ROWS, *index.ROWS]

"""A model's start written straight into the files of a checkpoint, in bounded memory.

entries   which tensors a checkpoint holds, and where the values of each come from
shards    which file each tensor goes to, and where in it
pieces    files as pieces of bounded size, each drawn and written by itself
folder    the folder: what is there, what is unfinished, how the new takes the old one's place
ranks     several processes that share the files
writing   write: all of it
"""

from fanin.streaming.ranks import PATIENCE, Ranks, ranks_of
from fanin.streaming.writing import SHARD_SIZE, Written, write

__all__ = ["PATIENCE", "SHARD_SIZE", "Ranks", "Written", "ranks_of", "write"]
